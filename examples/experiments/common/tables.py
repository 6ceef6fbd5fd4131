"""Tables of an experiment, in the terminal and in Markdown."""

import statistics
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable


class Table(NamedTuple):
    title: str
    heading: list
    rows: list
    notes: str = ""


def spread(values, digits):
    if not values:
        return "–"
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def per_cent(accuracies):
    return spread([100 * accuracy for accuracy in accuracies], 1)


def step_time(results, network, recipe, quartiles=False):
    found = results.step_time(network, recipe)
    if found is None:
        return "–"
    low, median, high = found
    return f"{median:.2f} × ({low:.2f} to {high:.2f})" if quartiles else f"{median:.1f} ×"


def print_tables(tables):
    for title, heading, rows, notes in tables:
        table = RichTable(title=title, caption=notes, box=SIMPLE_HEAD, caption_justify="left", title_justify="left")
        table.add_column(heading[0], no_wrap=True)
        for column in heading[1:]:
            table.add_column(column, justify="right")
        for row in rows:
            table.add_row(*row)
        Console(width=max(Console().width, 150)).print(table)


def markdown(table):
    ruler = ["---", *["--:"] * (len(table.heading) - 1)]
    lines = grid(table.heading, ruler, table.rows)
    return "\n".join([f"**{table.title}**", "", lines, *(["", table.notes] if table.notes else [])])


def grid(heading, ruler, rows):
    """The lines of a Markdown table alone."""
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in (heading, ruler, *rows))
