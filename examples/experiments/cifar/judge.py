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
    """Return (name in the results, name for readers), None where no judge has seen every model."""
    rows = [row for row in results.rows if row["network"] == network]
    for attack, label in JUDGES.items():
        name = f"{attack} linf {epsilon}"
        if rows and all(name in row for row in rows):
            return name, label
    return None


def points(results, network, epsilon=EPSILON):
    """Return recipe -> :class:`Point`, of those that were judged and timed."""
    judged = judge(results, network, epsilon)
    found = {}
    for recipe in results.recipes(network) if judged else ():
        time = results.step_time(network, recipe)
        if time is not None:
            clean, robust = (results.numbers(network, recipe, name) for name in ("clean", judged[0]))
            found[recipe] = Point(*_mean(clean, robust), time[1], *_spread(clean, robust), len(robust))
    return found


def _mean(*columns):
    return [100 * statistics.mean(values) for values in columns]


def _spread(*columns):
    return [100 * statistics.stdev(values) if len(values) > 1 else 0.0 for values in columns]
