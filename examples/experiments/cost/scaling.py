"""How the cost of a penalised step, relative to a plain one, changes with batch, width, classes and share."""

import matplotlib.pyplot as plt
import torch
from matplotlib.ticker import FuncFormatter, NullLocator
from tqdm import tqdm

from examples.experiments.cost.contenders import CONTENDERS, SUBJECTS, penalised, timm_model
from examples.experiments.cost.steps import Bench

TIMED = ["tv", "tv, 1/8 of batch", "max, N/2 pairs"]
SHARES = [1 / 8, 1 / 4, 1 / 2, 1]
# A vision transformer with three heads, on 64 px: batch size, width of its embedding, number of classes.
STANDARD = {"batch size": 32, "width": 192, "classes": 10}
VALUES = {"batch size": [8, 16, 32, 64], "width": [48, 96, 192, 384], "classes": [10, 100, 1000, 10_000]}
QUICK = {"batch size": [4, 8], "width": [24], "classes": [10]}
LINES = [("#0072B2", "o", "-"), ("#56B4E9", "D", "--"), ("#009E73", "^", "-."), ("#D55E00", "v", ":")]


def scaling(device, rounds, budget, quick=False):
    """Return points: the axis, its value, whose curve, and the row of results."""
    cases = [(axis, value) for axis, values in (QUICK if quick else VALUES).items() for value in values]
    points, size = [], 32 if quick else 64
    for axis, value in tqdm(cases, unit="point"):
        torch.manual_seed(0)
        batch, width, classes = {**STANDARD, **({"width": 24} if quick else {}), axis: value}.values()
        model = timm_model("vit_tiny", size, classes, embed_dim=width, depth=1 if quick else 12)
        bench = _bench(model, 3, size, batch, {name: CONTENDERS[name] for name in TIMED}, device)
        points += [{"axis": axis, "value": value, "curve": r.pop("contender"), **r} for r in bench.rows(rounds, budget)]
    for name in tqdm(["mlp"] if quick else ["mlp", "resnet18", "vit_tiny"], unit="model"):
        subject = SUBJECTS[name]
        bench = _bench(
            subject.build(subject.size),
            subject.channels,
            subject.size,
            STANDARD["batch size"],
            {share: penalised("tv", share) for share in SHARES},
            device,
        )
        memory = {share: bench.operations_and_memory(share)[1] for share in ("plain", *SHARES)}
        points += [
            {"axis": "share", "value": share, "curve": name, "memory": memory[share] / memory["plain"]}
            for share in SHARES
        ]
    return points


def _bench(model, channels, size, batch, contenders, device):
    x = torch.rand(batch, channels, size, size, device=device)
    return Bench(model.to(device), x, torch.randint(10, (batch,), device=device), contenders)


def plot_scaling(results, path):
    """Time over batch size, width and classes, with the counted ratios; memory over the share of the batch."""
    plt.rcParams.update({"font.size": 12, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(1, 4, figsize=(16, 5), layout="constrained")
    for plot, axis in zip(axes, [*VALUES, "share"], strict=True):
        points = [p for p in results["points"] if p["axis"] == axis and p["curve"] != "plain"]
        for name, (colour, marker, dash) in zip(dict.fromkeys(p["curve"] for p in points), LINES, strict=False):
            curve = [p for p in points if p["curve"] == name]
            x = [p["value"] for p in curve]
            if axis == "share":
                plot.plot(x, [p["memory"] for p in curve], color=colour, marker=marker, linestyle=dash, label=name)
                continue
            y = [p["time"] for p in curve]
            low = [p["time"] - p["lower quartile"] for p in curve]
            high = [p["upper quartile"] - p["time"] for p in curve]
            plot.errorbar(x, y, [low, high], color=colour, marker=marker, linestyle=dash, capsize=3, label=name)
            plot.plot(x, [p["counted"] for p in curve], color=colour, linewidth=6, alpha=0.25)
        if axis == "share":
            plot.plot(SHARES, [1 + 2 * s for s in SHARES], color="black", linewidth=1, label="1 + 2ρ")
            plot.set(ylabel="memory / that of a plain step", xlabel="share ρ of the batch", ylim=(0, None))
        else:
            plot.set(ylabel="time / that of a plain step", xlabel=axis, xscale="log", ylim=(0, None))
            plot.set_xticks(sorted({p["value"] for p in points}))
            plot.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            plot.xaxis.set_minor_locator(NullLocator())
        plot.legend(frameon=False, fontsize=10, loc="lower center" if axis != "share" else "upper left")
        plot.grid(alpha=0.3)
    figure.suptitle("A vision transformer, measured (median and quartiles) and as counted (wide lines); memory")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
    plt.close(figure)
