"""Images of the CIFAR-10 experiment; its quick form takes scikit-learn's digits, enlarged and coloured."""

import functools

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

from examples.experiments.common import cifar
from examples.experiments.common.experiment import Data

VALIDATION = 5_000  # the last of the training images


@functools.cache
def load(folder, split, quick, images=50_000 - VALIDATION):
    """The first `images` training images, and those of `split`: "validation" to choose settings with, or "test"."""
    if quick:
        x, y = _digits()
        return Data(
            x[:640], y[:640], *((x[1_200:1_400], y[1_200:1_400]) if split == "validation" else (x[1_400:], y[1_400:]))
        )
    x, y = cifar.load(folder, train=True)
    judged = (x[-VALIDATION:], y[-VALIDATION:]) if split == "validation" else cifar.load(folder, train=False)
    return Data(x[: min(images, len(x) - VALIDATION)], y[: min(images, len(x) - VALIDATION)], *judged)


def _digits():
    images, labels = load_digits(return_X_y=True)
    x = F.interpolate(torch.tensor(images / 16, dtype=torch.float32).view(-1, 1, 8, 8), scale_factor=4)
    colours = torch.rand(len(x), 3, 1, 1, generator=torch.Generator().manual_seed(0))
    return x * (0.5 + colours / 2), torch.tensor(labels)
