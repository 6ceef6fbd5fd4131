"""The picture of the fine-tuning experiment: what is gained for how much clean accuracy, and for how much time."""

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.ticker import NullLocator

from examples.experiments.cifar.judge import judge
from examples.experiments.common.figures import mean_and_spread, save
from examples.experiments.finetune.report import changes

COLOURS = {
    "plain": ("#999999", "D"),
    "fgsm": ("#D55E00", "s"),
    "fgsm-half": ("#E69F00", "D"),
    "pgd": ("#000000", "v"),
    "tv-fourth": ("#009E73", "o"),
    "tv": ("#0072B2", "o"),
    "tv-strong": ("#56B4E9", "P"),
    "logits": ("#CC79A7", "*"),
}


def draw(results, folder):
    plt.rcParams.update({"font.size": 12, "axes.spines.top": False, "axes.spines.right": False})
    drawn = (_picture(results, network, Path(folder)) for network in results.networks())
    return [path for path in drawn if path is not None]


def _picture(results, network, folder):
    found = changes(results, network)
    if len(found) < 2:
        return None
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5.5), layout="constrained", sharey=True)
    for way, (colour, marker) in COLOURS.items():
        names = sorted((name for name in found if _way(name) == way), key=lambda name: found[name].price)
        if not names:
            continue
        label = results.label(network, names[0]).rpartition(", a tenth")[0]
        (clean, clean_spreads), (robust, spreads) = (
            zip(*(mean_and_spread(getattr(found[name], of)) for name in names), strict=True)
            for of in ("clean", "robust")
        )
        style = {"color": colour, "marker": marker, "label": label, "capsize": 2, "alpha": 0.9}
        left.errorbar(clean, robust, spreads, clean_spreads, **style)
        right.errorbar([100 * found[name].price for name in names], robust, spreads, **style)
    left.set(xlabel="change of clean accuracy, points", title="what it costs in clean accuracy")
    left.set_ylabel(f"robust accuracy gained at ℓ∞ 8/255, points\n({judge(results, network)[1]})")
    right.set(xlabel="time, as a share of the plain training's", title="what it costs in time", xscale="log")
    prices = [100 * change.price for change in found.values() if change.price]
    ticks = [tick for tick in (10, 20, 40, 80, 160) if min(prices) / 1.1 < tick < 1.1 * max(prices)]
    right.set_xticks(ticks, [f"{tick} %" for tick in ticks])
    right.xaxis.set_minor_locator(NullLocator())
    left.grid(alpha=0.3)
    right.grid(alpha=0.3)
    left.legend(frameon=False, fontsize=10)
    seeds = max(len(change.clean) for change in found.values())
    figure.suptitle(f"{results.meta['images']}, {network}, " + (f"up to {seeds} seeds" if seeds > 1 else "one seed"))
    return save(figure, folder / f"finetune_{network}.png")


def _way(name):
    """Of a recipe: its name without the number of tenths; None where it is a variant beside the line."""
    way, _, tenths = name.rpartition("-")
    return way if tenths.isdigit() else name
