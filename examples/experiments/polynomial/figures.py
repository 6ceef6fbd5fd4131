"""The pictures of the polynomial: each function draws one from fits, grouped by name, setting and seed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

matplotlib.use("Agg")
from matplotlib import pyplot as plt

plt.rcParams |= {"font.size": 10, "axes.titlesize": 11, "legend.frameon": False, "figure.dpi": 120}
plt.rcParams |= {"axes.spines.top": False, "axes.spines.right": False}

BLACK, ORANGE, BLUE, GREEN, PINK = "#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7"  # Okabe and Ito's palette

Groups = dict[str, list[list[Any]]]  # name in the legend -> a list for each setting -> a Fit for each seed


class Problem:
    """What every picture shows besides the fits: the polynomial on a grid, and where data is missing."""

    def __init__(self, grid: np.ndarray, target: np.ndarray, gaps: Sequence[tuple[float, float]]) -> None:
        self.grid, self.target, self.gaps = grid, target, gaps

    def draw(self, ax: Axes, fit: Any = None) -> None:
        for i, gap in enumerate(self.gaps):
            ax.axvspan(*gap, color="0.9", lw=0, label="no data here" if i == 0 else None)
        ax.plot(self.grid, self.target, color=BLACK, ls=":", lw=1.5, label="polynomial")
        if fit is not None:
            ax.plot(fit.x, fit.y, ".", color=BLACK, ms=6, label="data (noisy)")
        ax.set(xlabel="x", ylim=(-0.5, 1.3))


def share_legend(fig: Figure, axes: Iterable[Axes]) -> None:
    """Put one legend for several panels below the picture."""
    entries = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    fig.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=len(entries))


def draw_fits(problem: Problem, groups: Groups) -> Figure:
    """One net of each training beside the distances of all seeds from the polynomial."""
    fig, axes = plt.subplots(1, 4, figsize=(15, 3.9), layout="constrained", width_ratios=(1, 1, 1, 0.8))
    shown = 1  # a seed on which plain training over-fits; the last panel has them all
    for ax, (name, (fits,)), color in zip(axes[:3], groups.items(), (ORANGE, BLUE, GREEN), strict=True):
        problem.draw(ax, fits[shown])
        ax.plot(problem.grid, fits[shown].curve, color=color, lw=2.2, label=f"network, {name}")
        ax.set_title(f"{name}\nsteepest slope {fits[shown].steepest:.2f}")
        for place, part in enumerate(("gap_error", "data_error")):
            values = [getattr(fit, part) for fit in fits]
            x = place + (list(groups).index(name) - 1) * 0.25
            axes[3].plot([x] * len(values), values, "o", color=color, alpha=0.5, ms=5)
            axes[3].plot([x - 0.1, x + 0.1], [np.mean(values)] * 2, color=color, lw=3)
    axes[0].set_ylabel("y")
    axes[3].set_xticks([0, 1], ["where data\nis missing", "where there\nis data"])
    axes[3].set(ylim=(0, None), ylabel="root mean square error")
    axes[3].set_title(f"Distance from the polynomial\n{len(fits)} seeds, bar: mean")
    share_legend(fig, axes[:3])
    fig.suptitle("A Lipschitz penalty keeps the network calm where data is missing")
    return fig


def draw_ascent_steps(problem: Problem, groups: Groups) -> Figure:
    """Fits with the pairs that the penalty saw, over their slopes."""
    fig, axes = plt.subplots(2, len(groups), figsize=(11, 6.4), layout="constrained", sharex=True, sharey="row")
    for column, (name, (fits,)), color in zip(axes.T, groups.items(), (ORANGE, BLUE), strict=True):
        top, bottom = column
        problem.draw(top, fits[0])
        for i, pair in enumerate(fits[0].pairs):
            ends = np.interp(pair, problem.grid, fits[0].curve)
            top.plot(pair, ends, "o-", color=PINK, lw=1.2, ms=4, label="pairs of the penalty" if i == 0 else None)
        top.plot(problem.grid, fits[0].curve, color=color, lw=2.2, label=f"network, {name.split(':')[0]} steps")
        top.set(title=name, xlabel="")
        for i, fit in enumerate(fits):
            bottom.plot(problem.grid, fit.slope, color=color, lw=2 if i == 0 else 1, alpha=1 if i == 0 else 0.4)
        estimate = np.mean([fit.estimate for fit in fits])
        bottom.axhline(estimate, color=PINK, ls="--", label=f"what the penalty sees: {estimate:.2f} (mean)")
        for gap in problem.gaps:
            bottom.axvspan(*gap, color="0.9", lw=0)
        steepest = np.mean([fit.steepest for fit in fits])
        bottom.plot(
            [], [], color=color, label=f"slope of the network, {len(fits)} seeds\n(steepest {steepest:.2f}, mean)"
        )
        bottom.set_xlabel("x")
        bottom.legend(fontsize=9, loc="upper center")
    axes[0, 0].set_ylabel("y")
    axes[1, 0].set_ylabel("|f′(x)|")
    axes[1, 0].set_ylim(0, 1.3 * axes[1, 0].get_ylim()[1])  # room for the legend
    share_legend(fig, axes[0])
    fig.suptitle("With few ascent steps the pairs stay at the data, and miss how steep the network is elsewhere")
    return fig


def draw_ascents(problem: Problem, groups: Groups) -> Figure:
    """Accuracy, what the ascent finds, and time, against the step size; no mark where a training diverged."""
    panels = {
        "Accuracy of the network\n(part of the polynomial within 0.1)": lambda fit: fit.true_accuracy,
        "What the ascent finds\n(estimate / true steepest slope)": lambda fit: fit.estimate / fit.steepest,
        "Processor time\n(ms per training step)": lambda fit: 1000 * fit.seconds,
    }
    fig, axes = plt.subplots(1, 3, figsize=(14, 4.2), layout="constrained")
    step_sizes = [fits[0].run.step_size for fits in groups["sgd"]]
    styles = zip(groups.items(), (ORANGE, BLUE, GREEN, PINK), ("o-", "s--", "^-.", ":"), strict=True)
    for (name, columns), color, style in styles:
        for ax, value in zip(axes, panels.values(), strict=True):
            values = np.array([[value(fit) for fit in fits] for fits in columns])
            mean, spread = values.mean(1), values.std(1)
            if len(columns) == 1:  # power steps have no size: a level line
                mean, spread = np.repeat(mean, len(step_sizes)), np.repeat(spread, len(step_sizes))
            label = f"{name} (has no step size)" if len(columns) == 1 else name
            ax.plot(step_sizes, mean, style, color=color, label=label)
            ax.fill_between(step_sizes, mean - spread, mean + spread, color=color, alpha=0.13, lw=0)
    for ax, title in zip(axes, panels, strict=True):
        ax.set(xscale="log", xlabel="step size of the ascent", title=title, ylim=(0, None))
    axes[2].legend(fontsize=9)
    fig.suptitle(f"Four ways to move the pairs (max, {len(groups['sgd'][0])} seeds; band: one standard deviation)")
    return fig


def draw_limit(problem: Problem, groups: Groups) -> Figure:
    """The fitted model from small to huge weights."""
    fig, axes = plt.subplots(1, len(groups), figsize=(12, 4.6), layout="constrained", sharey=True)
    weights = [fits[0].run.weight for fits in groups["max"]]
    norm, colors = LogNorm(min(weights), max(weights)), matplotlib.colormaps["viridis_r"]
    for ax, (name, columns) in zip(axes, groups.items(), strict=True):
        problem.draw(ax, columns[0][0])
        for weight, fits in zip(weights, columns, strict=True):
            ax.plot(problem.grid, fits[0].curve, color=colors(norm(weight)), lw=2)
        ax.axhline(fits[0].y.mean(), color=ORANGE, ls="--", lw=1.5, label="mean of the data")
        ax.set_title(f"penalty {name}")
    axes[0].set_ylabel("y")
    fig.colorbar(matplotlib.cm.ScalarMappable(norm, colors), ax=axes, label="weight λ of the penalty")
    share_legend(fig, axes)
    fig.suptitle("As the weight grows, the network flattens to the mean of the data")
    return fig


def draw_weights(problem: Problem, groups: Groups) -> Figure:
    """Loss, accuracy, slope and error where data is missing, against the weight."""
    panels = {
        "Loss": (("loss", "mse + penalty", "--"), ("mse", "mse", "-")),
        "Accuracy (within 0.1)": (("accuracy", "of the data", "-"), ("true_accuracy", "of the polynomial", "--")),
        "Lipschitz constant": (("steepest", "steepest slope", "-"), ("estimate", "estimate (lower bound)", "--")),
        "Error where data is missing": (("gap_error", "root mean square", "-"),),
    }
    fig, axes = plt.subplots(1, 4, figsize=(16, 4.2), layout="constrained")
    weights = [fits[0].run.weight for fits in groups["max"]]
    for (name, columns), color in zip(groups.items(), (BLUE, GREEN), strict=True):
        for ax, (title, lines) in zip(axes, panels.items(), strict=True):
            for attribute, label, style in lines:
                values = np.array([[getattr(fit, attribute) for fit in fits] for fits in columns])
                mean = values.mean(1)
                ax.plot(weights, mean, style, color=color, lw=2, label=f"{name}: {label}")
                ax.fill_between(weights, values.min(1), values.max(1), color=color, alpha=0.12, lw=0)
            ax.set(xscale="log", xlabel="weight λ", title=title)
    for ax in axes:
        ax.legend(fontsize=8)
        if ax is axes[2]:
            ax.set_yscale("log")
        else:
            ax.set_ylim(0, 1.02 if ax is axes[1] else None)
    fig.suptitle(
        f"The weight is a compromise: too small over-fits, too large flattens ({len(columns[0])} seeds; band: range)"
    )
    return fig


FIGURES = {  # file -> (runs it shows, how to draw them)
    "fits.png": ("fits", draw_fits),
    "ascent_steps.png": ("ascent_steps", draw_ascent_steps),
    "ascents.png": ("ascents", draw_ascents),
    "limit.png": ("weights", draw_limit),
    "weights.png": ("weights", draw_weights),
}
