"""The pictures of the MNIST experiment: accuracy against strength (the report's figures 8 to 10) and against cost."""

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.ticker import NullFormatter, NullLocator

from examples.experiments.common.figures import mean_and_spread, save
from examples.experiments.common.labels import place
from examples.experiments.mnist.measures import STRENGTHS

CURVES = ("plain", "fgsm", "pgd", "trades", "tv", "sum", "max")  # as many as a picture can hold
# Okabe and Ito's colours, which colour-blind readers tell apart; marker and dash say the same once more.
STYLES = [
    ("#000000", "o", ":"),
    ("#0072B2", "s", "-"),
    ("#56B4E9", "D", "--"),
    ("#009E73", "^", "-."),
    ("#D55E00", "v", "--"),
    ("#CC79A7", "P", (0, (3, 1, 1, 1))),
    ("#E69F00", "X", (0, (5, 2))),
]
PANELS = {  # the report's figure: its perturbation, title, label of the strength
    8: ("fgsm", "one gradient step (FGSM)", "largest change of a pixel, ε"),
    9: ("pgd linf", "20 gradient steps (PGD)", "largest change of a pixel, ε"),
    10: ("noise", "Gaussian noise", "standard deviation, σ"),
}
VARIANTS = {"differences", "logits-strong", "logits-ptv", "logits-warmup"}  # too close to others for the price picture
SCALE = 0.85  # the price picture ends at this part of the best accuracy
JUDGES = {
    "autoattack linf 0.1": "AutoAttack",
    "apgd linf 0.1": "AutoAttack's gradient attacks",
}  # the first that is there


def draw(results, folder):
    """Save the pictures of every network; return their paths."""
    plt.rcParams.update({"font.size": 13, "axes.spines.top": False, "axes.spines.right": False})
    return [
        path
        for network in results.networks()
        for path in (_strengths(results, network, Path(folder)), _cost(results, network, Path(folder)))
        if path is not None
    ]


def _strengths(results, network, folder):
    figure, axes = plt.subplots(1, 3, figsize=(14, 5.2), sharey=True, layout="constrained")
    styles = dict(zip(CURVES, STYLES, strict=True))
    for axis, (number, (name, title, label)) in zip(axes, PANELS.items(), strict=True):
        for recipe in [recipe for recipe in CURVES if results.of(network, recipe)]:
            colour, marker, dash = styles[recipe]
            points = [_mean_and_spread(results, network, recipe, f"{name} {value}") for value in STRENGTHS[name]]
            means, spreads = zip(*points, strict=True)
            style = {"color": colour, "marker": marker, "linestyle": dash, "capsize": 3, "markersize": 5}
            axis.errorbar(STRENGTHS[name], means, spreads, label=results.label(network, recipe), **style)
        axis.set(xscale="log", title=f"{title}\n(report: figure {number})", xlabel=label, ylim=(0, 100))
        axis.set_xticks(STRENGTHS[name], ["" if value == 0.06 else f"{value:g}" for value in STRENGTHS[name]])
        axis.tick_params(axis="x", labelsize=11)
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(f"accuracy on {results.meta['images']} (%)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(CURVES), frameon=False)
    return save(figure, folder / f"mnist_{network}_strength.png")


def _cost(results, network, folder):
    """Accuracy under AutoAttack against the time of a step: the upper left is where one wants to be.

    Recipes with fewer seeds than others are left out: there are more than a picture can hold.
    """
    shown = [recipe for recipe in results.recipes(network) if recipe not in VARIANTS]
    timed = [recipe for recipe in shown if results.step_time(network, recipe)]
    seeds = max((len(results.of(network, recipe)) for recipe in timed), default=0)
    recipes = [recipe for recipe in timed if len(results.of(network, recipe)) == seeds]
    judge = next((name for name in JUDGES if all(results.numbers(network, r, name) for r in recipes)), None)
    if not recipes or judge is None:
        return None
    figure, axis = plt.subplots(figsize=(10, 6.5), layout="constrained")
    labels = []
    found = {recipe: _mean_and_spread(results, network, recipe, judge) for recipe in recipes}
    floor = SCALE * max(mean for mean, _ in found.values())
    for recipe, (mean, spread) in found.items():
        low, median, high = results.step_time(network, recipe)
        ours = "penalty" in results.meta["recipes"][network][recipe]
        colour, marker = ("#0072B2", "o") if ours else ("#D55E00", "s")
        text = results.label(network, recipe)
        if mean < floor:  # drawn at the lower edge, so that the others are told apart
            mean, spread, marker, text = floor, None, "v", f"{text}: {mean:.1f}"
        widths = [[median - low], [high - median]]
        axis.errorbar(median, mean, spread, widths, color=colour, marker=marker, capsize=2, alpha=0.9)
        labels.append((median, mean, text, colour))
    axis.set(xscale="log", xlabel="time of a training step, relative to plain training")
    axis.set_ylabel(f"accuracy under {JUDGES[judge]}, ℓ∞, ε = 0.1 (%)")
    axis.set_title(f"{network}: robustness and its price" + (f", {seeds} seeds" if seeds > 1 else ""))
    ticks = [tick for tick in (1, 1.5, 2, 3, 4, 6, 8, 10, 15, 20) if tick <= 1.3 * max(m for m, *_ in labels)]
    axis.set_xticks(ticks, [f"{tick:g} ×" for tick in ticks])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlim(0.9, 1.6 * max(median for median, *_ in labels))
    axis.grid(alpha=0.3)
    place(axis, labels)
    for colour, marker, text in (("#0072B2", "o", "with a Lipschitz penalty"), ("#D55E00", "s", "without")):
        axis.plot([], [], color=colour, marker=marker, linestyle="", label=text)
    axis.legend(
        frameon=False, loc="lower right", title="▾ lies below the scale" if min(found.values())[0] < floor else None
    )
    return save(figure, folder / f"mnist_{network}_cost.png")


def _mean_and_spread(results, network, recipe, name):
    return mean_and_spread([100 * value for value in results.numbers(network, recipe, name)])
