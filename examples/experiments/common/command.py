"""Train on MNIST in many ways, attack what came out: the report's tables 1 to 3 and figures 8 to 10, and more.

    python examples/mnist_robustness.py --data FOLDER --seeds 3 --workers 2

A stopped sweep goes on where it was. `--quick` does the same on scikit-learn's digits within two minutes.
"""

import argparse
import os
from pathlib import Path

import torch
from _mnist_data import load
from _mnist_evaluation import COSTLY, MEASURES
from _mnist_figures import draw
from _mnist_readme import filled, robustness_contents
from _mnist_recipes import RECIPES
from _mnist_results import PUBLISHED, collect, command_line, read, read_times, save, times_path
from _mnist_sweep import Job, sweep, write_json
from _mnist_tables import print_tables
from _mnist_timing import relative_step_times

QUICK_RECIPES = ["plain", "fgsm", "tv", "max", "logits-warmup"]
QUICK_MEASURES = ["curves", "norms", "apgd"]


def options_from(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = list(dict.fromkeys(name for recipes in RECIPES.values() for name in recipes))
    data = os.environ.get("TORCHLIPREG_DATA", "out/data")
    parser.add_argument("--data", default=data, help="folder of MNIST's files (default: TORCHLIPREG_DATA or out/data)")
    parser.add_argument("--out", type=Path, help="where each model's numbers are kept (default: out/mnist-SPLIT)")
    parser.add_argument("--networks", type=_list_of(RECIPES), default=list(RECIPES), help="default: mlp,conv")
    parser.add_argument(
        "--recipes", type=_list_of(names), help=f"of {','.join(names)}; default: all, a few with --quick"
    )
    parser.add_argument(
        "--measures",
        type=_list_of(MEASURES),
        help=f"of {','.join(MEASURES)}; default: all, the cheap ones with --quick",
    )
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each recipe; one with --quick")
    parser.add_argument("--workers", type=int, default=1, help="processes, of one thread each")
    parser.add_argument("--split", choices=["test", "validation"], default="test", help="images to judge by")
    parser.add_argument(
        "--timing", action="store_true", help="take the step times again, with the machine otherwise idle"
    )
    parser.add_argument("--collect", action="store_true", help="train and measure nothing, show what is there")
    parser.add_argument("--results", type=Path, help="where tables and figures go (default: OUT/results)")
    parser.add_argument("--readme", type=Path, help="only fill this file's marked tables, from the published results")
    parser.add_argument("--quick", action="store_true", help="digits, small networks, one seed, no full AutoAttack")
    options = parser.parse_args(arguments)
    options.recipes = options.recipes or (QUICK_RECIPES if options.quick else names)
    options.measures = options.measures or (QUICK_MEASURES if options.quick else list(MEASURES))
    if options.out is None:
        options.out = Path("out/mnist" + ("-quick" if options.quick else "") + f"-{options.split}")
    options.results = options.results or options.out / "results"
    if not all_jobs(options, ()):
        parser.error(f"--networks {','.join(options.networks)} has no recipe {','.join(options.recipes)}")
    return options


def _list_of(names):
    def split(text):
        chosen = text.split(",")
        if unknown := set(chosen) - set(names):
            raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: not among {', '.join(names)}")
        return chosen

    return split


def all_jobs(options, measures):
    """Seed by seed, so that a part of the sweep is of use."""
    return [
        Job(
            network,
            name,
            RECIPES[network][name],
            seed,
            measures,
            options.data,
            options.split,
            options.quick,
            options.out,
        )
        for seed in range(1 if options.quick else options.seeds)
        for network in options.networks
        for name in RECIPES[network]
        if name in options.recipes
    ]


def take_times(options):
    for network in options.networks:
        recipes = {name: RECIPES[network][name] for name in ["plain", *options.recipes] if name in RECIPES[network]}
        known = read_times(options.out, network)
        if options.timing or any(known.get(name, {}).get("settings") != r.settings() for name, r in recipes.items()):
            data = load(options.data, options.split, options.quick)
            known |= relative_step_times(network, recipes, data, options.quick)
            write_json(times_path(options.out, network), known)


def main(arguments=None):
    options = options_from(arguments)
    if options.readme is not None:
        text = options.readme.read_text(encoding="utf-8")
        options.readme.write_text(filled(text, robustness_contents(read(PUBLISHED))), encoding="utf-8")
        return None
    torch.set_num_threads(1)  # so small networks gain little from more, and workers would be in one another's way
    if not options.collect:
        # Two jobs of one model never run at once: the costly judges come when all else is there.
        for costly in (False, True):
            if measures := tuple(measure for measure in options.measures if (measure in COSTLY) == costly):
                sweep(all_jobs(options, measures), options.workers)
        take_times(options)
    save(collect(all_jobs(options, ()), options.out, command_line("mnist_robustness.py", arguments)), options.results)
    results = read(options.results)
    print_tables(results)
    pictures = draw(results, options.results)
    print(f"Results: {options.results}; pictures: {', '.join(path.name for path in pictures)}")
    return results


if __name__ == "__main__":
    main()
