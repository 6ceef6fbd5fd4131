"""An experiment's tables in docs/results, each between markers: <!-- mnist mlp --> and <!-- end mnist mlp -->."""

import re

from examples.experiments.common.tables import markdown


def marked(name):
    return re.compile(rf"(<!-- {name} (\w+) -->\n).*?(<!-- end {name} \2 -->)", re.DOTALL)


def filled(page, name, contents):
    """The text with each marked place filled whose name is in `contents`."""

    def fill(match):
        begin, place, end = match.groups()
        return f"{begin}{contents[place]}\n{end}" if place in contents else match.group()

    return marked(name).sub(fill, page)


def contents_of(experiment, results):
    """A network's tables, its brief one for the README, and how they were made."""
    contents = {network: f"No results of `{network}` yet." for network in experiment.recipes}
    for network in results.networks():
        made_of = experiment.tables(results, network)
        contents[network] = "\n\n".join(markdown(table) for table in made_of)
        if experiment.brief:
            contents[f"{network}_brief"] = markdown(_brief(experiment, results, network, made_of[0]))
    return contents | {"made": made(results.meta)}


def _brief(experiment, results, network, table):
    labels = [results.label(network, recipe) for recipe in experiment.brief if results.of(network, recipe)]
    rows = sorted((row for row in table.rows if row[0] in labels), key=lambda row: labels.index(row[0]))
    return table._replace(rows=rows)


def made(meta):
    versions = ", ".join(f"{library} {version}" for library, version in meta["versions"].items())
    return f"Made on {meta['date']} by `{meta['command']}` ({versions}; {meta['processor']})."
