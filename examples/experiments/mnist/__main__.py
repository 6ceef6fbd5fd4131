"""Train on MNIST in many ways, attack what came out: the report's tables 1 to 3 and figures 8 to 10, and more.

    python -m examples.experiments.mnist --data FOLDER --seeds 3 --workers 2

A stopped sweep goes on where it was. `--quick` does the same on scikit-learn's digits within two minutes.
"""

from examples.experiments.common import command
from examples.experiments.mnist.experiment import MNIST, MODULE

if __name__ == "__main__":
    command.main(MNIST, MODULE)
