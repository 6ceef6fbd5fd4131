"""One page of the experiment's tables and pictures, made from the records alone."""

from examples.experiments.common.files import write
from examples.experiments.common.pages import contents_of, made


def page(experiment, results):
    contents = contents_of(experiment, results)
    parts = [f"# Natural images: {results.meta['images'].split(' of ')[1]}", made(results.meta), _how(results)]
    for network in results.networks():
        parts += [
            f"## {network}",
            contents[network],
            f"![frontier and price]({experiment.name}_{network}_frontier.png)",
        ]
    return "\n\n".join(parts) + "\n"


def write_page(experiment, results, path):
    write(path, lambda part: part.write_text(page(experiment, results), encoding="utf-8"))


def _how(results):
    """How long the networks were trained: the same for each."""
    settings = next(iter(next(iter(results.meta["recipes"].values())).values()))
    if settings["quick"]:
        return f"The quick form: {settings['epochs']} epochs on few images, with narrow networks."
    return (
        f"{settings['images']:,} training images, {settings['epochs']} epochs of Adam with {settings['schedule']} to "
        f"{settings['learning_rate']:g}, batches of {settings['batch']}, {settings['augmentation']}; widths × "
        f"{settings['width']}."
    )
