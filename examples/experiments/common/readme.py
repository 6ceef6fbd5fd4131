"""The README's tables of the MNIST experiment, each between markers: <!-- mnist mlp --> and <!-- end mnist mlp -->."""

import re

from _mnist_recipes import RECIPES
from _mnist_tables import markdown, robustness, tables

MARKED = re.compile(r"(<!-- mnist (\w+) -->\n).*?(<!-- end mnist \2 -->)", re.DOTALL)


def filled(readme, contents):
    """The text with each marked place filled whose name is in `contents`."""

    def fill(match):
        begin, name, end = match.groups()
        return f"{begin}{contents[name]}\n{end}" if name in contents else match.group()

    return MARKED.sub(fill, readme)


def robustness_contents(results):
    """A network's tables, and how they were made."""
    contents = {network: f"No results of `{network}` yet." for network in RECIPES}
    for network in results.networks():
        contents[network] = "\n\n".join(markdown(table) for table in tables(results, network))
    return contents | {"made": _made(results.meta)}


def settings_contents(results):
    return {"settings": f"{markdown(robustness(results, 'mlp'))}\n\n{_made(results.meta)}"}


def _made(meta):
    versions = ", ".join(f"{library} {version}" for library, version in meta["versions"].items())
    return f"Made on {meta['date']} by `{meta['command']}` ({versions}; {meta['processor']})."
