"""The picture of few labels: what each family gains over plain training, by the number of labels."""

import statistics

import matplotlib.pyplot as plt
from matplotlib.ticker import NullLocator

from examples.experiments.labels.tables import best

STYLES = {  # Okabe and Ito's colours; ours are drawn broad
    "weight decay": ("#999999", "s", "--"),
    "dropout": ("#E69F00", "D", "--"),
    "Gaussian noise": ("#56B4E9", "^", "--"),
    "label smoothing": ("#CC79A7", "P", "--"),
    "mixup": ("#000000", "X", "--"),
    "Jacobian penalty": ("#D55E00", "v", "--"),
    "early stopping": ("#999999", "*", ":"),
    "noise and Jacobian": ("#D55E00", "v", ":"),
    "noise and smoothing": ("#CC79A7", "P", ":"),
    "tv ℓ∞, ε .1": ("#009E73", "o", "-"),
    "tv ℓ∞, ε .2": ("#F0E442", "o", "-"),
    "tv ℓ∞, ε 8/255": ("#F0E442", "s", "-"),
    "tv ℓ2, ε 1": ("#0072B2", "o", "-"),
}


def draw(jobs, counts, title, things, path):
    """Save the picture of the runs with right labels; return its path, None where there is no more than one count."""
    plain = {count: found for count in counts if (found := best(jobs, "plain", count, 0.0))}
    if len(plain) < 2:
        return None
    figure, axis = plt.subplots(figsize=(8, 5.5), layout="constrained")
    for family, (colour, marker, dash) in STYLES.items():
        gains = {count: _gains(best(jobs, family, count, 0.0), plain[count]) for count in plain}
        shown = {count: values for count, values in gains.items() if values}
        if shown:
            means = [statistics.mean(values) for values in shown.values()]
            spreads = [statistics.stdev(values) if len(values) > 1 else 0.0 for values in shown.values()]
            style = {"color": colour, "marker": marker, "linestyle": dash, "capsize": 2, "label": family}
            axis.errorbar(list(shown), means, spreads, linewidth=2.5 if dash == "-" else 1.2, **style)
    if not axis.lines:
        plt.close(figure)
        return None
    axis.axhline(0, color="#000000", linewidth=0.8)
    axis.set(xscale="log", xlabel=f"labelled {things}", ylabel="accuracy gained over plain training, points")
    axis.set_xticks(list(plain), [f"{count:,}" for count in plain])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_title(f"{title}, with few labels: each family at its best by validation")
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=72)
    plt.close(figure)
    return path


def _gains(found, plain):
    """Seed by seed, which have their images and their order in common."""
    if found is None:
        return []
    pairs = zip(found[1], plain[1], strict=False)
    return [100 * (mine["accuracy"] - theirs["accuracy"]) for mine, theirs in pairs]
