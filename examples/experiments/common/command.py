"""The command line of an experiment: train in many ways, attack what came out, show tables and pictures.

A stopped sweep goes on where it was. `--quick` does the same on small data within two minutes.
"""

import argparse
import os
from dataclasses import replace
from pathlib import Path

import torch

from examples.experiments.common.files import write_json
from examples.experiments.common.pages import contents_of, filled
from examples.experiments.common.results import PUBLISHED, collect, read, read_times, save, times_path, with_earlier
from examples.experiments.common.sweep import Job, sweep
from examples.experiments.common.tables import print_tables
from examples.experiments.common.timing import relative_step_times
from examples.experiments.common.versions import command_line


def options_from(experiment, arguments):
    recipes, measures = experiment.recipes, experiment.measures
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = list(dict.fromkeys(name for of_network in recipes.values() for name in of_network))
    data = os.environ.get("TORCHLIPREG_DATA", "out/data")
    parser.add_argument("--data", default=data, help="folder of the data (default: TORCHLIPREG_DATA or out/data)")
    parser.add_argument("--out", type=Path, help=f"where each model's numbers are kept: out/{experiment.name}-SPLIT")
    parser.add_argument("--networks", type=_list_of(recipes), default=list(recipes), help="default: all")
    parser.add_argument(
        "--recipes", type=_list_of(names), help=f"of {','.join(names)}; default: all, a few with --quick"
    )
    parser.add_argument(
        "--measures",
        type=_list_of(measures),
        help=f"of {','.join(measures)}; default: all, the cheap ones with --quick",
    )
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each recipe; one with --quick")
    parser.add_argument("--workers", type=int, default=1, help="processes, of one thread each")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--split", choices=["test", "validation"], default="test", help="what to judge by")
    parser.add_argument(
        "--timing", action="store_true", help="take the step times again, with the machine otherwise idle"
    )
    parser.add_argument("--collect", action="store_true", help="train and measure nothing, show what is there")
    parser.add_argument("--results", type=Path, help="where tables and figures go (default: OUT/results)")
    parser.add_argument("--page", type=Path, help="only fill this file's marked tables, from the published results")
    parser.add_argument("--quick", action="store_true", help="small data and networks, one seed, no full AutoAttack")
    parser.set_defaults(command="")
    options = parser.parse_args(arguments)
    options.recipes = options.recipes or (list(experiment.quick_recipes) if options.quick else names)
    options.measures = options.measures or (list(experiment.quick_measures) if options.quick else list(measures))
    if options.out is None:
        options.out = Path(f"out/{experiment.name}" + ("-quick" if options.quick else "") + f"-{options.split}")
    options.results = options.results or options.out / "results"
    if not all_jobs(experiment, options, ()):
        parser.error(f"--networks {','.join(options.networks)} has no recipe {','.join(options.recipes)}")
    return options


def _list_of(names):
    def split(text):
        chosen = text.split(",")
        if unknown := set(chosen) - set(names):
            raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: not among {', '.join(names)}")
        return chosen

    return split


def all_jobs(experiment, options, measures):
    """Seed by seed, so that a part of the sweep is of use."""
    where = options.data, options.split, options.quick, options.out, options.command
    return [
        Job(experiment, network, name, recipe, seed, measures, *where)
        for seed in range(1 if options.quick else options.seeds)
        for network in options.networks
        for name, recipe in experiment.recipes[network].items()
        if name in options.recipes
    ]


def take_times(experiment, options):
    for network in options.networks:
        of_network = experiment.recipes[network]
        recipes = {name: of_network[name] for name in ["plain", *options.recipes] if name in of_network}
        known = read_times(options.out, network)
        if options.timing or any(known.get(name, {}).get("settings") != r.settings() for name, r in recipes.items()):
            data = experiment.load(options.data, options.split, options.quick)
            known |= relative_step_times(experiment, network, recipes, data, options.quick)
            write_json(times_path(options.out, network), known)


def main(experiment, module, arguments=None):
    """Run an experiment.

    Args:
        experiment: What to do.
        module: As which it was called, for the results file.
        arguments: Of the command line.

    Returns:
        The results, None where only a page was filled.
    """
    options = options_from(experiment, arguments)
    options.command = command_line(module, arguments)
    name = experiment.records
    if options.page is not None:
        contents = contents_of(experiment, read(PUBLISHED, name))
        text = options.page.read_text(encoding="utf-8")
        options.page.write_text(filled(text, experiment.name, contents), encoding="utf-8")
        return None
    experiment = replace(experiment, device=options.device)
    torch.set_num_threads(1)  # so small networks gain little from more, and workers would be in one another's way
    if not options.collect:
        # Two jobs of one model never run at once: the costly judges come when all else is there.
        for costly in (False, True):
            chosen = (measure for measure in options.measures if experiment.measures[measure].costly == costly)
            if measures := tuple(chosen):
                sweep(all_jobs(experiment, options, measures), options.workers)
        take_times(experiment, options)
    jobs = all_jobs(experiment, options, ())
    found = collect(jobs, options.out, options.command)
    if (options.results / f"{name}.json").exists():  # with rows that are no longer among the records, or never were
        found = with_earlier(found, read(options.results, name), jobs)
    save(found, options.results, name)
    results = read(options.results, name)
    for network in results.networks():
        print_tables(experiment.tables(results, network))
    pictures = experiment.draw(results, options.results)
    print(f"Results: {options.results}; pictures: {', '.join(path.name for path in pictures)}")
    return results
