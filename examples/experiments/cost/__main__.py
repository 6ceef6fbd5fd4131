"""What a penalised training step costs, next to a plain one and to what a user would train with instead.

    python -m examples.experiments.cost                          # about ten minutes on one CPU core
    python -m examples.experiments.cost --models resnet50 vit_small --seconds 300
    python -m examples.experiments.cost --device cuda --autocast --compile
    python -m examples.experiments.cost --scaling                # curves over batch, width, classes, share

A step is forward, loss and backward, without an optimiser, whose time would make all ratios smaller. All ways to train
take turns in one process, and ratios are those to the plain step of the same round. Beside each measured ratio stands
the counted one, from the forwards and backwards that the step consists of (`contenders.py`).
"""

import argparse
import shlex
from pathlib import Path

import torch
from tqdm import tqdm

from examples.experiments.cost.contenders import CONTENDERS, SUBJECTS
from examples.experiments.cost.report import describe_run, plot_steps, print_tables, rounded, save, write_page
from examples.experiments.cost.scaling import plot_scaling, scaling
from examples.experiments.cost.steps import Bench, overhead

MODELS = {
    "quick": ["two-layer", "mlp"],
    "cpu": ["two-layer", "mlp", "resnet18", "vit_tiny"],
    "cuda": list(SUBJECTS),
}


def make_parser():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--models", nargs="+", choices=SUBJECTS, help=f"default on a CPU: {' '.join(MODELS['cpu'])}")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), metavar="NAME")
    parser.add_argument("--image-size", type=int, help="in pixels; default by model, 224 on a GPU")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=40, help="rounds at most, in each of which all take a turn")
    parser.add_argument("--seconds", type=float, default=120, help="of timing for each model, after which rounds end")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--autocast", action="store_true", help="bfloat16 in the forwards of the training loop")
    parser.add_argument("--compile", action="store_true", help="time torch.compile(model)")
    parser.add_argument("--scaling", action="store_true", help="draw the scaling curves instead")
    parser.add_argument("--quick", action="store_true", help="three rounds, tiny batches: only to see that it runs")
    parser.add_argument("--out", type=Path, help="the results, .json, with a .png beside them")
    parser.add_argument("--page", type=Path, help="put the table between this file's markers")
    return parser


def command(parser, options):
    """The run's options, without where its results went."""
    words = ["python", "-m", "examples.experiments.cost"]
    for name, value in vars(options).items():
        if value != parser.get_default(name) and name not in ("out", "page"):
            values = [] if value is True else value if isinstance(value, list) else [value]
            words += [f"--{name.replace('_', '-')}", *map(str, values)]
    return shlex.join(words)


def bench(name, options):
    subject = SUBJECTS[name]
    size, batch = options.image_size or subject.image_size(options.device), options.batch_size
    if options.quick:
        size, batch = min(size, 32), 16
    torch.manual_seed(0)
    x = torch.rand(batch, subject.channels, size, size, device=options.device)
    y = torch.randint(10, (batch,), device=options.device)
    contenders = {name: CONTENDERS[name] for name in options.contenders}
    return Bench(
        subject.build(size).to(options.device), x, y, contenders, autocast=options.autocast, compiled=options.compile
    )


def main(arguments=None):
    parser = make_parser()
    options = parser.parse_args(arguments)
    repeats = 3 if options.quick else options.repeats
    out = options.out or Path("out", "benchmark_scaling.json" if options.scaling else "benchmark_step.json")
    torch.set_num_threads(options.threads)
    results = {"run": describe_run(command(parser, options), options.device)}
    if options.scaling:
        results["points"] = scaling(options.device, repeats, options.seconds / 10, quick=options.quick)
        plot_scaling(results, out.with_suffix(".png"))
    else:
        results["overhead"] = [overhead(size, options.device, repeats, 10) for size in (8, 28)]
        results["models"] = {}
        models = options.models or MODELS["quick" if options.quick else options.device]
        for name in (bar := tqdm(models, unit="model")):
            bar.set_description(name)
            steps = bench(name, options)
            size, batch = steps.x.shape[-1], len(steps.x)
            rows = steps.rows(repeats, options.seconds)
            results["models"][name] = {"image size": size, "batch size": batch, "rows": rows}
        print_tables(results)
        plot_steps(results, out.with_suffix(".png"))
        if options.page:
            write_page(rounded(results), options.page)  # as they are saved
    save(results, out)
    print(f"Results: {out}, picture: {out.with_suffix('.png')}")
    return results


if __name__ == "__main__":
    main()
