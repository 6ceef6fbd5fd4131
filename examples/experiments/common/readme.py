"""An experiment's tables in the README, each between markers: <!-- mnist mlp --> and <!-- end mnist mlp -->."""

import re

from examples.experiments.common.tables import markdown


def marked(name):
    return re.compile(rf"(<!-- {name} (\w+) -->\n).*?(<!-- end {name} \2 -->)", re.DOTALL)


def filled(readme, name, contents):
    """The text with each marked place filled whose name is in `contents`."""

    def fill(match):
        begin, place, end = match.groups()
        return f"{begin}{contents[place]}\n{end}" if place in contents else match.group()

    return marked(name).sub(fill, readme)


def contents_of(experiment, results):
    """A network's tables, and how they were made."""
    contents = {network: f"No results of `{network}` yet." for network in experiment.recipes}
    for network in results.networks():
        contents[network] = "\n\n".join(markdown(table) for table in experiment.tables(results, network))
    return contents | {"made": made(results.meta)}


def made(meta):
    versions = ", ".join(f"{library} {version}" for library, version in meta["versions"].items())
    return f"Made on {meta['date']} by `{meta['command']}` ({versions}; {meta['processor']})."
