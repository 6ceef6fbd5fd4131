"""The README's tables of the MNIST experiment, each between markers: <!-- mnist mlp --> and <!-- end mnist mlp -->."""

import re

from _mnist_tables import markdown, tables

MARKED = re.compile(r"(<!-- mnist (\w+) -->\n).*?(<!-- end mnist \2 -->)", re.DOTALL)


def with_tables(readme, results):
    """The text with each marked place filled from the results: a network's tables, or how they were made."""

    def fill(match):
        begin, name, end = match.groups()
        return f"{begin}{_content(results, name)}\n{end}"

    return MARKED.sub(fill, readme)


def _content(results, name):
    if name == "made":
        versions = ", ".join(f"{library} {version}" for library, version in results.meta["versions"].items())
        meta = results.meta
        return f"Made on {meta['date']} by `{meta['command']}` ({versions}; {meta['processor']})."
    if name not in results.networks():
        return f"No results of `{name}` yet."
    return "\n\n".join(markdown(table) for table in tables(results, name))
