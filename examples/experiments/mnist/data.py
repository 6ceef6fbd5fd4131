"""Images and networks of the MNIST experiment; its quick form takes scikit-learn's digits and smaller networks."""

import functools

import torch
from sklearn.datasets import load_digits
from torch import nn
from torchvision.datasets import MNIST

from examples.experiments.common.experiment import Data

TRAINING_IMAGES = {"mnist": 48_000, "digits": 1_000}  # the training images that come after are for validation


@functools.cache
def load(folder, split, quick):
    """The training images, and those of `split`: "validation" to choose settings with, "test" for the final numbers."""
    (x, y), test = _digits() if quick else (_mnist(folder, train=True), _mnist(folder, train=False))
    size = TRAINING_IMAGES["digits" if quick else "mnist"]
    return Data(x[:size], y[:size], *((x[size:], y[size:]) if split == "validation" else test))


def build(network, quick):
    if network == "mlp":
        a, b, c, d = (64, 64, 32, 10) if quick else (784, 200, 80, 10)
        linears = nn.Linear(a, b), nn.ReLU(), nn.Linear(b, c), nn.ReLU(), nn.Linear(c, d)
        return nn.Sequential(nn.Flatten(), *linears)
    channels, side, hidden = (4, 2, 32) if quick else (16, 7, 100)  # side: of the image after two strides of 2
    return nn.Sequential(
        nn.Conv2d(1, channels, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(channels, 2 * channels, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2 * channels * side**2, hidden),
        nn.ReLU(),
        nn.Linear(hidden, 10),
    )


def _mnist(folder, train):
    try:
        images = MNIST(folder, train=train, download=True)  # looks for the files first
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"MNIST is not in {str(folder)!r} and could not be downloaded ({error}). Name the folder that holds "
            "MNIST/raw/*-ubyte by --data or the environment variable TORCHLIPREG_DATA; --quick needs no such data."
        ) from error
    return images.data.unsqueeze(1) / 255, images.targets


def _digits():
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32).view(-1, 1, 8, 8), torch.tensor(labels)
    return (x[:1_300], y[:1_300]), (x[1_300:], y[1_300:])
