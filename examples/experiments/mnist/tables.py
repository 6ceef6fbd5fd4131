"""The tables of the MNIST experiment, with the report's own numbers beside ours."""

from examples.experiments.common.robustness import robustness as table_of
from examples.experiments.common.tables import Table, per_cent, spread, step_time

COLUMNS = {  # heading: name in the results
    "clean": "clean",
    "FGSM ∞ .1": "fgsm 0.1",
    "PGD ∞ .1": "pgd linf 0.1",
    "PGD ∞ .2": "pgd linf 0.2",
    "APGD ∞ .1": "apgd linf 0.1",
    "APGD ∞ .2": "apgd linf 0.2",
    "AutoAttack ∞ .1": "autoattack linf 0.1",
    "PGD 2 1.0": "pgd l2 1.0",
    "PGD 2 2.0": "pgd l2 2.0",
    "APGD 2 1.0": "apgd l2 1.0",
    "AutoAttack 2 1.0": "autoattack l2 1.0",
    "noise .8": "noise 0.8",
}
NOTES = {  # what a column's heading starts with: what is to be known of it
    "PGD": "PGD: 20 steps, on every fifth image.",
    "APGD": "APGD: the two gradient attacks of AutoAttack, on the first 1,000 images.",
    "AutoAttack": "AutoAttack: the standard four attacks, on the first 1,000 images.",
    "noise": "Noise is added as it is, without a clamp to [0, 1].",
    "‖J‖": "‖J‖: the largest operator norm from ℓ∞ to ℓ∞ of the Jacobian at the first 1,000 images.",
    "time": "time: of a step, relative to plain.",
}
REPORT_ASCENTS = {
    "max": ("SGD", 299.7, 0.25),
    "max-nesterov": ("NAG", 258.2, 0.2188),
    "max-adam": ("ADAM", 232.7, 0.2188),
}
REPORT_MAX = (0.9685, 0.5781, 0.5965)  # clean, PGD .4, FGSM .06
REPORT_ESTIMATORS = {"sum": (0.9663, 0.3584, 0.3984), "max-local": REPORT_MAX, "max": REPORT_MAX}
REPORT_TIMES = {  # seconds and training accuracy
    "plain": (54, 0.979),
    "sum": (126, 0.979),
    "fgsm": (116, 0.837),
    "tv": (95, 0.981),
    "tv-whole": (95, 0.981),
    "logits-ptv": (94, 0.978),
}


def tables(results, network):
    """All tables of a network, those without a row left out."""
    made = (make(results, network) for make in (robustness, ascents, estimators, times))
    return [table for table in made if table.rows]


def robustness(results, network):
    return table_of(results, network, COLUMNS, NOTES)


def ascents(results, network):
    """Counterpart of the report's table 1: how the pair set of `max` is moved."""
    rows = [
        [
            optimizer,
            f"{seconds:.1f} s, {100 * accuracy:.1f}",
            step_time(results, network, recipe),
            spread(results.numbers(network, recipe, "train seconds"), 0),
            *(per_cent(results.numbers(network, recipe, name)) for name in ("clean", "pgd linf 0.1", "apgd linf 0.1")),
        ]
        for recipe, (optimizer, seconds, accuracy) in REPORT_ASCENTS.items()
        if results.of(network, recipe)
    ]
    heading = ["ascent of max", "report: time, attacked", "time", "seconds", "clean", "PGD ∞ .1", "APGD ∞ .1"]
    notes = (
        "The report does not say which attack its column is. Seconds of a whole training depend on the machine's load."
    )
    return Table(f"{network}: the ascents (report, table 1)", heading, rows, notes)


def estimators(results, network):
    """Counterpart of the report's table 2: the largest quotient of the pair set, or their mean."""
    names = ("clean", "pgd l2 0.4", "pgd linf 0.4", "fgsm 0.06")
    rows = []
    for recipe, (clean, pgd, fgsm) in REPORT_ESTIMATORS.items():
        if results.of(network, recipe):
            ours = [per_cent(results.numbers(network, recipe, name)) for name in names]
            theirs = [f"{100 * value:.1f}" for value in (clean, pgd, fgsm)]
            label = results.label(network, recipe)
            rows.append([label, theirs[0], ours[0], theirs[1], ours[1], ours[2], theirs[2], ours[3]])
    heading = ["estimator", "report: clean", "clean", "report: PGD .4", "PGD 2 .4", "PGD ∞ .4", "report: FGSM .06"]
    notes = (
        "The report does not say in which norm its PGD of size .4 is bounded. ℓ2 compares with it; within ℓ∞ .4 an "
        "image can be turned into nearly any other."
    )
    return Table(f"{network}: max against sum (report, table 2)", [*heading, "FGSM .06"], rows, notes)


def times(results, network):
    """Counterpart of the report's table 3."""
    rows = [
        [
            results.label(network, recipe),
            f"{seconds / REPORT_TIMES['plain'][0]:.2f} ×",
            step_time(results, network, recipe, quartiles=True),
            f"{100 * accuracy:.1f}",
            per_cent(results.numbers(network, recipe, "train accuracy")),
        ]
        for recipe, (seconds, accuracy) in REPORT_TIMES.items()
        if results.of(network, recipe)
    ]
    plain = results.meta["recipes"][network].get("plain", {}).get("step time", {}).get("ms")
    heading = ["training", "report: time", "time (quartiles)", "report: train accuracy", "train accuracy"]
    notes = f"Time relative to plain training, whose step takes {plain} ms here." if plain else ""
    return Table(f"{network}: time (report, table 3)", heading, rows, notes)
