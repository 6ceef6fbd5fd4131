"""The tables of the fine-tuning experiment and its page, made from the records alone."""

import statistics
from typing import NamedTuple

from examples.experiments.cifar.goals import Goal
from examples.experiments.cifar.judge import Point, judge, points, seeds_of
from examples.experiments.cifar.measures import EPSILON
from examples.experiments.common.pages import made
from examples.experiments.common.robustness import robustness
from examples.experiments.common.tables import Table, markdown

COLUMNS = {
    "clean": "clean",
    "PGD ∞ 8": f"pgd linf {EPSILON}",
    "APGD ∞ 8": f"apgd linf {EPSILON}",
    "AutoAttack ∞ 8": f"autoattack linf {EPSILON}",
    "noise .1": "noise 0.1",
}
NOTES = {
    "PGD": "PGD: 20 steps, on every tenth image; ℓ∞ in 255ths of the range of a pixel.",
    "APGD": "APGD: the two gradient attacks of AutoAttack, on the first 200 images: a standard error of 3 points.",
    "AutoAttack": "AutoAttack: the standard four attacks, on the first 200 images.",
    "noise": "Noise is added as it is, without a clamp to [0, 1].",
    "time": "time: CPU time of a step, relative to plain, taken in turns.",
}
RIVALS = ("fgsm", "pgd")
LEVEL = Goal("", 0.0, "")  # all of the rival's robustness, and its clean accuracy


class Change(NamedTuple):
    """What a fine-tuning has changed, in points, mean over seeds, and what it has cost."""

    clean: tuple  # one number for each seed
    robust: tuple
    noise: tuple
    price: float  # share of the plain training's time

    def words(self):
        changes = " / ".join(_signed(values) for values in (self.clean, self.robust, self.noise))
        return f"{changes}, {100 * self.price:.0f} %"

    def point(self):
        return Point(statistics.mean(self.clean), statistics.mean(self.robust), self.price, 0.0, 0.0, len(self.clean))


def _signed(values):
    mean = f"{statistics.mean(values):+.1f}".replace("-", "−")
    return mean + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")


def price(results, network, recipe):
    """Of a fine-tuning, as a share of the plain training's time; None where its steps were not timed."""
    time = results.step_time(network, recipe)
    return None if time is None else results.meta["recipes"][network][recipe]["part"] * time[1]


def changes(results, network, seeds=None):
    """Return recipe -> :class:`Change` against the network as it was, for what was judged and timed."""
    judged, found = judge(results, network), {}
    numbers = ("clean", judged[0] if judged else "", "noise 0.1")
    before = {row["seed"]: row for row in results.of(network, "base") if all(name in row for name in numbers)}
    for recipe in points(results, network, seeds):
        wanted = seeds_of(results, network, recipe) & before.keys() & (before.keys() if seeds is None else seeds)
        rows = [row for row in results.of(network, recipe) if row["seed"] in wanted]
        if rows and all(name in row for row in rows for name in numbers):
            gained = [tuple(100 * (row[name] - before[row["seed"]][name]) for row in rows) for name in numbers]
            found[recipe] = Change(*gained, price(results, network, recipe))
    return found


def tables(results, network):
    made = [accuracies(results, network), _comparison(results, network)]
    return [table for table in made if table.rows]


def accuracies(results, network):
    """A row for each recipe, with its price."""
    title, heading, rows, notes = robustness(results, network, COLUMNS, NOTES)
    prices = [price(results, network, recipe) for recipe in results.recipes(network)]
    if any(prices):
        heading = [*heading, "price"]
        rows = [[*row, "–" if of is None else f"{100 * of:.0f} %"] for row, of in zip(rows, prices, strict=True)]
        notes += " price: time of the fine-tuning, as a share of the plain training's."
    return Table(title, heading, rows, notes)


def _comparison(results, network):
    """For each rival the best of ours with as many epochs, and with no more time, on the seeds of both."""
    rows, kept = [], results.meta["recipes"][network]
    for rival in changes(results, network):
        if rival.partition("-")[0] not in RIVALS:
            continue
        for condition in ("as many epochs", "no more time"):
            rows.append(_row(results, network, rival, condition, kept))
    heading = ["rival", "its changes", "at", "ours", "its changes", "verdict"]
    notes = (
        "Changes against the network as it was, in points: clean accuracy / under "
        f"{(judge(results, network) or ('', 'attack'))[1]} at ∞ 8 / with noise .1, and the price; the same seeds. "
        "Verdict: in clean accuracy and under attack at least the rival's, or by how much one of the two is not."
    )
    return Table(f"{network}: against the rivals", heading, rows, notes)


def _row(results, network, rival, condition, kept):
    theirs = changes(results, network)[rival]
    compared = []
    for name in changes(results, network):
        same = kept[name]["part"] == kept[rival]["part"]
        cheap = price(results, network, name) <= theirs.price
        if "penalty" in kept[name] and (same if condition == "as many epochs" else cheap):
            common = seeds_of(results, network, name) & seeds_of(results, network, rival)
            if common:
                of_common = changes(results, network, common)
                mine, other = of_common[name], of_common[rival]
                lacking = LEVEL.lacking(mine.point(), other.point(), other.point())
                compared.append((lacking, -mine.point().clean, name, mine, other))
    label = results.label(network, rival)
    if not compared:
        return [label, theirs.words(), condition, "none measured", "–", "–"]
    lacking, _, name, mine, other = min(compared)
    verdict = "reached" if lacking == 0 else f"{lacking:.1f} points short"
    return [label, other.words(), condition, results.label(network, name), mine.words(), verdict]


def page(results, validation=None):
    """The page of the results, and of those on validation images that settings were chosen by."""
    parts = [f"# Fine-tuning: {results.meta['images'].split(' of ')[1]}", made(results.meta), _how(results)]
    for network in results.networks():
        parts += [f"## {network}", *map(markdown, tables(results, network)), f"![price](finetune_{network}.png)"]
    if validation is not None:
        parts += ["## Settings, chosen on validation images", made(validation.meta)]
        parts += [markdown(table) for network in validation.networks() for table in tables(validation, network)]
    return "\n\n".join(parts) + "\n"


def _how(results):
    of = next(iter(next(iter(results.meta["recipes"].values())).values()))
    return (
        f"The networks were trained plainly: {of['images']:,} training images, {of['epochs']} epochs of Adam with "
        f"{of['schedule']} to {of['learning_rate']:g}, batches of {of['batch']}, {of['augmentation']}. Fine-tuning "
        "goes on with the same images for a part of the epochs, with a new Adam and a cycle of its own."
    )
