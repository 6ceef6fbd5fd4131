"""Fine-tune networks that were trained plainly to the end, and attack what came out.

    python -m examples.experiments.finetune --data FOLDER --workers 2

The plain networks are those of `python -m examples.experiments.cifar`, whose records serve with `--bases FOLDER`; the
missing ones are trained first. A stopped sweep goes on where it was; `--quick` does the same on scikit-learn's digits
within two minutes. `--split validation` has more recipes: those that the settings were chosen from.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from examples.experiments.common import cifar, command
from examples.experiments.common.files import write
from examples.experiments.common.results import read
from examples.experiments.common.sweep import sweep
from examples.experiments.common.versions import command_line
from examples.experiments.finetune.experiment import MODULE, experiment
from examples.experiments.finetune.report import page
from examples.experiments.finetune.training import base_job


def main(arguments=None):
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--bases", type=Path)  # folder of the plain networks: a run of the other experiment's, or BASES
    chosen, others = parser.parse_known_args(arguments)
    split = "validation" if "validation" in others else "test"
    options = command.options_from(experiment("", split), others)
    bases = chosen.bases or Path("out/finetune-bases" if not options.quick else options.out / "bases")
    of = experiment(bases, split)
    of = replace(of, images=(cifar.name(options.data), of.images[1]))
    if not options.collect:
        seeds = range(1 if options.quick else options.seeds)
        where = options.data, options.quick, bases, command_line(MODULE, others)
        sweep([base_job(network, seed, *where) for seed in seeds for network in options.networks], options.workers)
    results = command.main(of, MODULE, others)
    if results is not None and split == "test":
        validation = options.results / "finetune-validation.json"
        chosen_by = read(options.results, validation.stem) if validation.exists() else None
        text = page(results, chosen_by)
        write(options.results / "finetune.md", lambda part: part.write_text(text, encoding="utf-8"))
    return results


if __name__ == "__main__":
    main()
