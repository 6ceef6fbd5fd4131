"""The cost benchmark's results: on disk, as tables, as pictures."""

import datetime
import json
import platform
import re
from importlib.metadata import version
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from matplotlib.ticker import NullLocator, ScalarFormatter
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from examples.experiments.cost.contenders import CONTENDERS

OURS, RIVALS, COUNTED = "#0072B2", "#D55E00", "#000000"  # of Okabe and Ito
ON_PAGE = [name for name in CONTENDERS if name not in ("plain", "tv, 2 steps", "sum, N/2 pairs")]
MARKERS = "<!-- benchmark_step -->", "<!-- /benchmark_step -->"


def describe_run(command, device):
    """What a reader needs in order to judge or repeat a run; nothing that names the machine's owner."""
    libraries = {name: version(name) for name in ("torch", "timm", "torchlipreg")}
    processor = torch.cuda.get_device_name() if device == "cuda" else _processor()
    return {
        "command": command,
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        **libraries,
        "processor": processor,
        "threads": torch.get_num_threads(),
    }


def _processor():
    found = (
        re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()) if platform.system() == "Linux" else None
    )
    return found[1] if found else platform.processor()


def save(results, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(rounded(results), indent=1, ensure_ascii=False)
    path.write_text(re.sub(r"\n {3,}(?=\S)|\n {2}(?=[}\]])", " ", text) + "\n", encoding="utf-8")  # one line a row


def rounded(tree):
    if isinstance(tree, dict):
        return {key: rounded(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [rounded(value) for value in tree]
    return float(f"{tree:.4g}") if isinstance(tree, float) else tree


def print_tables(results):
    console = Console(width=max(Console().width, 110))
    for name, model in results["models"].items():
        title = f"{name}, {model['image size']} px, batch of {model['batch size']}: a step, relative to a plain one"
        table = Table(title=title, box=SIMPLE_HEAD)
        table.add_column("training", no_wrap=True)
        for column in ("ms", "time", "quartiles", "counted", "operations", "memory", "rounds"):
            table.add_column(column, justify="right", no_wrap=True)
        for row in model["rows"]:
            ratios = (f"{row[key]:.2f} ×" for key in ("counted", "operations", "memory"))
            quartiles = "{lower quartile:.2f} – {upper quartile:.2f}".format(**row)
            table.add_row(
                row["contender"],
                f"{row['milliseconds']:.3g}",
                f"{row['time']:.2f} ×",
                quartiles,
                *ratios,
                str(row["rounds"]),
            )
        console.print(table)
    for row in results["overhead"]:
        console.print(_overhead_line(row))


def _overhead_line(row):
    return (
        "A call of `tv` beyond its forwards and backwards, two-layer network, {inputs} inputs, batch of 128: "
        "{milliseconds:.2f} ms (quartiles {lower quartile:.2f} – {upper quartile:.2f}).".format(**row)
    )


def page_table(results):
    """Measured and counted ratios side by side, as Markdown."""
    models = results["models"]
    heads = [f"{name}, {model['image size']} px" for name, model in models.items()]
    lines = [
        f"| time per step (counted) | {' | '.join(heads)} | {' | '.join(f'memory, {name}' for name in models)} |",
        "|---" + "|--:" * 2 * len(models) + "|",
    ]
    for contender in ON_PAGE:
        rows = [_find(model, contender) for model in models.values()]
        times = [f"{row['time']:.2f} ({row['counted']:.2f})" if row else "—" for row in rows]
        memory = [f"{row['memory']:.2f}" if row else "—" for row in rows]
        lines.append(f"| {contender} | {' | '.join(times)} | {' | '.join(memory)} |")
    run, batches = results["run"], sorted({model["batch size"] for model in models.values()})
    lines += [
        "",
        f"`{run['command']}`: batches of {' or '.join(map(str, batches))}, {run['processor']}, threads: "
        f"{run['threads']}, torch {run['torch']}, {run['date']}.",
    ]
    return "\n".join([*lines, *map(_overhead_line, results["overhead"])])


def _find(model, contender):
    return next((row for row in model["rows"] if row["contender"] == contender), None)


def write_page(results, path):
    """Put the table between the two markers."""
    before, _, rest = path.read_text(encoding="utf-8").partition(MARKERS[0])
    _, end, after = rest.partition(MARKERS[1])
    if not end:
        raise SystemExit(f"{path} lacks the lines {MARKERS[0]} and {MARKERS[1]}, between which the table goes.")
    path.write_text(f"{before}{MARKERS[0]}\n{page_table(results)}\n{end}{after}", encoding="utf-8")


def plot_steps(results, path):
    """Measured ratios with quartiles, and the counted ones, a panel for each model."""
    plt.rcParams.update({"font.size": 12, "axes.spines.top": False, "axes.spines.right": False})
    models = results["models"]
    figure, axes = plt.subplots(1, len(models), figsize=(2 + 3 * len(models), 6), sharey=True, layout="constrained")
    compared = [name for name in CONTENDERS if not name.startswith("plain")]
    names = [name for name in compared if any(_find(model, name) for model in models.values())]
    for axis, (model, found) in zip([axes] if len(models) == 1 else axes, models.items(), strict=True):
        for y, name in enumerate(reversed(names)):
            row = _find(found, name)
            if row is None:
                continue
            low, high = row["time"] - row["lower quartile"], row["upper quartile"] - row["time"]
            colour, marker = (RIVALS, "s") if CONTENDERS[name].rival else (OURS, "o")
            axis.errorbar(row["time"], y, xerr=[[low], [high]], fmt=marker, color=colour, capsize=3)
            axis.plot(row["counted"], y, "|", color=COUNTED, markersize=18, markeredgewidth=2)
        axis.axvline(1, color="0.7", linewidth=1)
        axis.set(title=f"{model}\n{found['image size']} px, batch of {found['batch size']}", xscale="log")
        axis.set_xlim(left=0.85)
        axis.set_xticks([1, 1.5, 2, 3, 5, 10])
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.xaxis.set_minor_locator(NullLocator())
        axis.grid(axis="x", alpha=0.3)
    first = axes if len(models) == 1 else axes[0]
    first.set_yticks(range(len(names)), reversed(names))
    figure.supxlabel("time of a step / time of a plain step")
    handles = [
        plt.Line2D([], [], color=OURS, marker="o", linestyle="", label="penalty: median and quartiles"),
        plt.Line2D([], [], color=RIVALS, marker="s", linestyle="", label="alternatives"),
        plt.Line2D([], [], color=COUNTED, marker="|", markersize=14, markeredgewidth=2, linestyle="", label="counted"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False)
    _save_figure(figure, path)


def _save_figure(figure, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    plt.close(figure)
