"""Train on CIFAR-10 in many ways, at many prices, and attack what came out.

    python -m examples.experiments.cifar --data FOLDER --networks conv --seeds 3 --workers 2
    python -m examples.experiments.cifar --data FOLDER --scale gpu --device cuda

A stopped sweep goes on where it was. `--quick` does the same on scikit-learn's digits within two minutes. Every number
of these tables on JPEG copies of the images is one of "CIFAR-10 (JPEG copies)", as their title says.
"""

import argparse
from dataclasses import replace

from examples.experiments.cifar.experiment import MODULE, SCALES
from examples.experiments.cifar.page import write_page
from examples.experiments.common import cifar, command


def main(arguments=None):
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--scale", choices=SCALES, default="cores")
    chosen, others = parser.parse_known_args(arguments)
    experiment = SCALES[chosen.scale]
    options = command.options_from(experiment, others)
    experiment = replace(experiment, images=(cifar.name(options.data), experiment.images[1]))
    scale = [] if chosen.scale == "cores" else ["--scale", chosen.scale]
    results = command.main(experiment, " ".join([MODULE, *scale]), others)
    if results is not None:
        write_page(experiment, results, options.results / f"{experiment.name}_robustness.md")
    return results


if __name__ == "__main__":
    main()
