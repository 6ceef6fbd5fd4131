"""One table and one picture of the quickstart's results."""

import statistics

import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

# Okabe and Ito's colours, which colour-blind readers tell apart; marker and dash say the same once more.
STYLES = [
    ("#000000", "o", ":"),
    ("#0072B2", "s", "-"),
    ("#56B4E9", "D", "--"),
    ("#009E73", "^", "-."),
    ("#D55E00", "v", "--"),
]
TITLES = {
    "FGSM": ("one gradient step (FGSM)", "largest change of a pixel, ε"),
    "PGD": ("20 gradient steps (PGD)", "largest change of a pixel, ε"),
    "noise": ("Gaussian noise", "standard deviation, σ"),
}


def mean_and_spread(values):
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def cell(values, digits):
    mean, spread = mean_and_spread(values)
    return f"{mean:.{digits}f}" + (f" ± {spread:.{digits}f}" if len(values) > 1 else " (one)")


def print_table(results, step_times, epsilon):
    runs = next(iter(results.values()))
    columns = {
        "clean": ("PGD", 0.0),
        f"FGSM {epsilon}": ("FGSM", epsilon),
        f"PGD {epsilon}": ("PGD", epsilon),
        f"PGD {2 * epsilon}": ("PGD", 2 * epsilon),
        "noise 0.2": ("noise", 0.2),
        "noise 0.4": ("noise", 0.4),
    }
    if "AutoAttack" in runs[0]:
        columns |= {f"AutoAttack {epsilon}": "AutoAttack"}
    title = f"Accuracy on 500 unseen digits, in per cent (mean ± standard deviation, {len(runs)} seeds)"
    table = Table(title=title, box=SIMPLE_HEAD)
    table.add_column("training", no_wrap=True)
    for column in [*columns, "Lipschitz ≥", "time/step"]:
        table.add_column(column, justify="right")
    for way, found in results.items():
        accuracies = (mean_and_spread([100 * run[key] for run in found if key in run]) for key in columns.values())
        lipschitz = mean_and_spread([run["lipschitz"] for run in found])
        cells = [f"{mean:.1f} ± {spread:.1f}" for mean, spread in accuracies]
        table.add_row(way, *cells, "{:.0f} ± {:.0f}".format(*lipschitz), f"{step_times[way]:.1f} ×")
    Console(width=max(Console().width, 124)).print(table)


def plot_curves(results, strengths, path):
    plt.rcParams.update({"font.size": 14, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(1, len(strengths), figsize=(15, 5), sharey=True, layout="constrained")
    for axis, (name, values) in zip(axes, strengths.items(), strict=True):
        for (way, found), (colour, marker, dash) in zip(results.items(), STYLES, strict=True):
            curve = [mean_and_spread([100 * run[name, value] for run in found]) for value in values]
            means, spreads = zip(*curve, strict=True)
            axis.errorbar(values, means, spreads, label=way, color=colour, marker=marker, linestyle=dash, capsize=3)
        title, strength = TITLES[name]
        axis.set(title=title, xlabel=strength, ylim=(0, 100))
        axis.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("accuracy on unseen digits (%)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(results), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
