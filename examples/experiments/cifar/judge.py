"""Which numbers the pictures and the goals are about: the strongest judge that has seen every model."""

import statistics
from typing import NamedTuple

from examples.experiments.cifar.measures import EPSILON

JUDGES = {"autoattack": "AutoAttack", "apgd": "AutoAttack's gradient attacks"}


class Point(NamedTuple):
    """A recipe's means, in per cent, and price; spreads are standard deviations over the seeds, 0 for one seed."""

    clean: float
    robust: float
    price: float
    clean_spread: float
    robust_spread: float
    seeds: int


def judge(results, network, epsilon=EPSILON):
    """Return (name in the results, name for readers), None where there is none."""
    rows = [row for row in results.rows if row["network"] == network]
    names = {f"{attack} linf {epsilon}": label for attack, label in JUDGES.items()}
    seen = {name: sum(name in row for row in rows) for name in names}
    chosen = max(names, key=seen.get)  # the first of equals
    return (chosen, names[chosen]) if seen[chosen] else None


def seeds_of(results, network, recipe):
    """The seeds whose models were judged."""
    judged = judge(results, network)
    return {row["seed"] for row in results.of(network, recipe) if judged and judged[0] in row}


def points(results, network, seeds=None):
    """Return recipe -> :class:`Point` of those that were judged and timed, on all its seeds or on `seeds`."""
    judged = judge(results, network)
    found = {}
    for recipe in results.recipes(network):
        wanted = seeds_of(results, network, recipe) & (seeds_of(results, network, recipe) if seeds is None else seeds)
        rows = [row for row in results.of(network, recipe) if row["seed"] in wanted]
        time = results.step_time(network, recipe)
        if rows and time is not None:
            columns = [[100 * row[name] for row in rows] for name in ("clean", judged[0])]
            spreads = [statistics.stdev(values) if len(values) > 1 else 0.0 for values in columns]
            found[recipe] = Point(*map(statistics.mean, columns), time[1], *spreads, len(rows))
    return found
