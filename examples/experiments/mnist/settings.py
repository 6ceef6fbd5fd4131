"""How the settings of `tv` trade clean accuracy for robustness: the report's network, judged on validation images.

    python -m examples.experiments.mnist.settings --data FOLDER --workers 2

One thing at a time is changed, one seed each. A stopped sweep goes on where it was. `--page FILE` fills the
table of that file from the published results.
"""

import argparse
import os
from pathlib import Path

import torch

from examples.experiments.common.pages import filled, made
from examples.experiments.common.recipes import flip
from examples.experiments.common.results import PUBLISHED, collect, read, save
from examples.experiments.common.sweep import Job, sweep
from examples.experiments.common.tables import markdown, print_tables
from examples.experiments.common.versions import command_line
from examples.experiments.mnist.experiment import MNIST
from examples.experiments.mnist.tables import robustness, tables
from torchlipreg.outputs import root_probabilities, smallest_margins

NAME = "mnist_settings"
MEASURES = ("curves", "apgd")
FIRST_NAMES = {"exponent": "power"}  # a label names the file of a model, and some were trained under earlier names


def tv(weight=1e-3, **options):
    shown = {name: getattr(value, "__name__", value) for name, value in options.items()}
    return flip(
        f"weight {weight:g}" + "".join(f", {FIRST_NAMES.get(k, k)} {v}" for k, v in shown.items()),
        "tv",
        weight,
        **options,
    )


def roots(weight, **options):
    return tv(weight, output=root_probabilities, **options)


VARIANTS = [
    *(tv(weight) for weight in (3e-4, 1e-3, 3e-3, 1e-2)),
    *(tv(radius=radius) for radius in (0.05, 0.2)),
    tv(5e-2, input_norm=2, radius=1.0),
    tv(2e-2, exponent=1),
    tv(ascent_steps=2),
    tv(bounds=(0, 1)),
    tv(interval=8),
    tv(num_pairs=16),
    tv(3e-3, weight_fall=0.03),
    *(roots(weight) for weight in (2e-2, 1e-1)),
    roots(1e-1, num_pairs=72, choose=smallest_margins),
    *(roots(0.3, weight_fall=fall) for fall in (0.01, 0.03, 0.1)),
    *(roots(0.3, weight_fall=0.03, num_pairs=pairs) for pairs in (72, 16)),
    *(roots(0.3, weight_fall=0.03, num_pairs=pairs, choose=smallest_margins) for pairs in (72, 16)),
]


def contents(results):
    return {"settings": f"{markdown(robustness(results, 'mlp'))}\n\n{made(results.meta)}"}


def all_jobs(data, out):
    where = data, "validation", False, out
    return [Job(MNIST, "mlp", recipe.label, recipe, 0, MEASURES, *where) for recipe in VARIANTS]


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", default=os.environ.get("TORCHLIPREG_DATA", "out/data"), help="folder of MNIST's files"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("out/mnist-settings"), help="where each model's numbers are kept"
    )
    parser.add_argument("--results", type=Path, help="where the tables go (default: OUT/results)")
    parser.add_argument("--workers", type=int, default=1, help="processes, of one thread each")
    parser.add_argument("--page", type=Path, help="only fill this file's marked table, from the published results")
    options = parser.parse_args(arguments)
    if options.page is not None:
        text = options.page.read_text(encoding="utf-8")
        options.page.write_text(filled(text, "mnist", contents(read(PUBLISHED, NAME))), encoding="utf-8")
        return
    torch.set_num_threads(1)
    jobs = all_jobs(options.data, options.out)
    sweep(jobs, options.workers)
    results = collect(jobs, options.out, command_line("examples.experiments.mnist.settings", arguments))
    save(results, options.results or options.out / "results", NAME)
    print_tables(tables(results, "mlp"))


if __name__ == "__main__":
    main()
