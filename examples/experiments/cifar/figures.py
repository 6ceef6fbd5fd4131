"""The pictures of the CIFAR-10 experiment: accuracy against strength; clean against robust, and what it costs."""

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.ticker import NullLocator

from examples.experiments.cifar.judge import judge, points
from examples.experiments.cifar.measures import STRENGTHS
from examples.experiments.common.figures import mean_and_spread, save
from examples.experiments.common.labels import place

FAMILIES = {  # a knob turned: recipes in its order
    "FGSM, ε of training": (("fgsm-4", "fgsm-6", "fgsm"), "#D55E00", "s"),
    "FGSM, share of the batch": (("plain", "fgsm-quarter", "fgsm-half", "fgsm"), "#E69F00", "D"),
    "N-FGSM, ε of training": (("n-fgsm-4", "n-fgsm"), "#CC79A7", "P"),
    "TRADES, β": (("trades-2", "trades"), "#56B4E9", "^"),
    "PGD-7": (("pgd",), "#000000", "v"),
    "prior-guided FGSM": (("prior-guided",), "#999999", "X"),
    "tv on a quarter, weight": (
        ("tv-quarter-5", "tv-quarter-10", "tv-quarter", "tv-quarter-30", "tv-quarter-40"),
        "#0072B2",
        "o",
    ),
    "tv on the whole batch, weight": (("tv-whole-17", "tv-whole", "tv-whole-30", "tv-whole-35"), "#000099", "D"),
    "tv of weight 10, share": (("tv-fourth", "tv-eighth", "tv-quarter-10"), "#009E73", "o"),
    "tv on logits, a quarter": (("logits-quarter",), "#0072B2", "*"),
}
PRICED = (  # of each price one, or two: more labels would lie on one another
    *("plain", "fgsm", "fgsm-quarter", "n-fgsm", "prior-guided", "pgd", "trades"),
    *("tv-fourth", "tv-eighth", "tv-quarter-10", "tv-half-alternate", "tv-whole"),
)
CURVES = {  # as many as a picture can hold
    "plain": ("plain training", "#000000", "o", ":"),
    "fgsm": ("FGSM adversarial training", "#D55E00", "s", "--"),
    "tv-quarter-10": ("torchlipreg, a quarter of each batch", "#0072B2", "D", "-"),
    "tv-fourth": ("the same, every 4th step", "#56B4E9", "^", "-."),
}


def draw(results, folder, name):
    plt.rcParams.update({"font.size": 12, "axes.spines.top": False, "axes.spines.right": False})
    kinds = {"strength": _strength, "frontier": _picture}
    drawn = (
        make(results, network, Path(folder, f"{name}_{network}_{kind}.png"))
        for network in results.networks()
        for kind, make in kinds.items()
    )
    return [path for path in drawn if path is not None]


def _strength(results, network, path):
    """Accuracy against the strength of the attack."""
    names = {0: "clean"} | {255 * strength: f"pgd linf {strength}" for strength in STRENGTHS["pgd linf"]}
    shown = [recipe for recipe in CURVES if results.numbers(network, recipe, list(names.values())[-1])]
    if len(shown) < 2:
        return None
    figure, axis = plt.subplots(figsize=(8, 4.6), layout="constrained")
    seeds = set()
    for recipe in shown:
        label, colour, marker, dash = CURVES[recipe]
        values = [[100 * v for v in results.numbers(network, recipe, name)] for name in names.values()]
        seeds.add(len(values[-1]))
        means, spreads = zip(*map(mean_and_spread, values), strict=True)
        price = results.step_time(network, recipe)
        label += f" ({price[1]:.2g} × the time)" if price and recipe != "plain" else ""
        style = {"color": colour, "marker": marker, "linestyle": dash, "capsize": 3}
        axis.errorbar(list(names), means, spreads, label=label, **style)
    axis.set(xlabel="strength of the attack: ℓ∞, in 255ths (PGD, 20 steps)", ylim=(0, None))
    axis.set_ylabel("accuracy (%)")
    axis.set_title(
        f"{results.meta['images']}, {network}, {max(seeds)} seed{'s' if max(seeds) > 1 else ''}", fontsize=11
    )
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    return save(figure, path)


def _picture(results, network, path):
    found = points(results, network)
    if len(found) < 2:
        return None
    figure, (left, right) = plt.subplots(1, 2, figsize=(14, 6), layout="constrained")
    _frontier(left, found)
    _price(right, results, network, found)
    label = judge(results, network)[1]
    left.set_ylabel(f"robust at ℓ∞ 8/255 (%), {label}", fontsize=11)
    seeds = max(point.seeds for point in found.values())
    figure.suptitle(f"{results.meta['images']}, {network}, " + (f"up to {seeds} seeds" if seeds > 1 else "one seed"))
    return save(figure, path)


def _frontier(axis, found):
    for label, (recipes, colour, marker) in FAMILIES.items():
        of = [found[name] for name in recipes if name in found and (name != "plain" or len(recipes) > 1)]
        if of:
            x, y = [p.clean for p in of], [p.robust for p in of]
            spreads = {"xerr": [p.clean_spread for p in of], "yerr": [p.robust_spread for p in of]}
            axis.errorbar(x, y, **spreads, color=colour, marker=marker, label=label, capsize=2, alpha=0.85)
    axis.set(xlabel="clean accuracy (%)", title="the frontier, one knob turned")
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, fontsize=10, loc="best")


def _price(axis, results, network, found):
    """Robustness against the price of a step: the upper left is where one wants to be."""
    labels = []
    for recipe in filter(found.__contains__, PRICED):
        point = found[recipe]
        ours = "penalty" in results.meta["recipes"][network][recipe]
        colour, marker = ("#0072B2", "o") if ours else ("#D55E00", "s")
        axis.errorbar(point.price, point.robust, point.robust_spread, color=colour, marker=marker, capsize=2)
        labels.append((point.price, point.robust, results.label(network, recipe), colour))
    dearest = max(point.price for point in found.values())
    ticks = [
        tick for tick in (1, 1.25, 1.5, 2, 3, 4, 6, 8, 12) if tick <= 1.3 * dearest and (tick != 1.25 or dearest < 4)
    ]
    axis.set(xscale="log", xlabel=f"{results.clock} of a step, relative to plain training", title="the price")
    axis.set_xticks(ticks, [f"{tick:g} ×" for tick in ticks])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlim(0.9, 2 * dearest)
    axis.grid(alpha=0.3)
    place(axis, labels)
