"""The tables of the CIFAR-10 experiment."""

import math

from examples.experiments.cifar.goals import goals
from examples.experiments.cifar.judge import JUDGES, judge
from examples.experiments.cifar.measures import BOUND, EPSILON, MORE_BOUNDS
from examples.experiments.common.results import KEYS, Results
from examples.experiments.common.robustness import robustness

BOUNDS = sorted([*BOUND, *MORE_BOUNDS], key=lambda bound: (bound[0] != "linf", bound[1]))


def heading(norm, epsilon):
    return f"∞ {255 * epsilon:g}" if norm == "linf" else f"2 {epsilon:g}".replace("0.", ".")


def attacked(attack, bounds):
    """Heading -> name in the results."""
    return {f"{attack} {heading(*of)}": f"{attack.lower()} {of[0]} {of[1]}" for of in bounds}


COLUMNS = {
    "clean": "clean",
    **attacked("APGD", BOUND),
    **attacked("AutoAttack", BOUND),
    "noise .2": "noise 0.2",
    "corrupted": "corrupted",
}
NOTES = {
    "APGD": "APGD: the two gradient attacks of AutoAttack; ℓ∞ in 255ths of the range of a pixel.",
    "AutoAttack": "AutoAttack: the standard four attacks; ℓ∞ in 255ths of the range of a pixel.",
    "noise": "Noise is added as it is, without a clamp to [0, 1].",
    "corrupted": "corrupted: the mean of blur, contrast, pixelate and JPEG, kinds of CIFAR-10-C, on 2,000 images.",
}


def _images(count):
    """So many images, and what their choice leaves open at an accuracy of a quarter."""
    return f"{count:,} images, the same for all: a standard error of {100 * math.sqrt(3 / 16 / count):.1f} points"


def tables(results, network, judged, thoroughly):
    """The gradient attacks have seen the first `judged` images, all of AutoAttack `thoroughly` many."""
    notes = NOTES | {"time": f"time: {results.clock} of a step, relative to plain, taken in turns."}
    seen = {"APGD": judged, "AutoAttack": thoroughly}
    notes |= {attack: f"{NOTES[attack]} On the first {_images(count)}." for attack, count in seen.items()}
    made = [robustness(results, network, COLUMNS, notes), strengths(results, network, notes), goals(results, network)]
    by_all = [row for row in results.rows if row["network"] == network and f"autoattack linf {EPSILON}" in row]
    if by_all and judge(results, network)[1] != JUDGES["autoattack"]:  # which has not seen every model
        made.append(goals(Results(by_all, results.meta), network))
    return [table for table in made if table.rows]


def strengths(results, network, notes):
    """Other strengths, of the models that met them: by all of AutoAttack, or else by its gradient attacks."""
    for attack in ("AutoAttack", "APGD"):
        columns = {"clean": "clean"} | attacked(attack, BOUNDS)
        weakest = next(iter(attacked(attack, MORE_BOUNDS).values()))
        met = [row for row in results.rows if row["network"] == network and weakest in row]
        if met:
            break
    shown = {*KEYS, *columns.values()}  # without the other judge, which would take the place of this one
    rows = [{name: value for name, value in row.items() if name in shown} for row in met]
    table = robustness(Results(rows, results.meta), network, columns, notes)
    return table._replace(title=f"{network}: attacks of other strengths, accuracy in per cent")
