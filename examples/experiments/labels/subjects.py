"""What there are few labels of: images and rows of tables, with a network each."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from sklearn.datasets import load_breast_cancer, load_wine
from torch import nn

from examples.experiments.cifar.nets import Normalise, conv
from examples.experiments.common import cifar
from examples.experiments.common.experiment import Data
from examples.experiments.mnist.data import build as build_for_mnist
from examples.experiments.mnist.data import load as load_mnist

HELD_OUT = 10_000  # of CIFAR-10's training images, to choose settings by


@dataclass(frozen=True)
class Subject:
    """A data set and a network for it.

    Attributes:
        title: The data set's name in a table; called with the folder of the data, as that may hold copies.
        network: In words.
        things: What one has few labels of.
        load: (folder, split, quick) -> Data.
        build: (an input, number of classes) -> a sequence of layers.
        counts: Of labels.
        steps: Of training.
    """

    title: Callable[[str], str]
    network: str
    things: str
    load: Callable[[str, str, bool], Data]
    build: Callable[..., nn.Module]
    counts: tuple[int, ...]
    steps: int = 1_500


def mlp(*hidden):
    def build(x, classes):
        widths = (x.numel(), *hidden, classes)
        layers = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())]
        return nn.Sequential(nn.Flatten(), *layers[:-1])

    return build


def conv_net(x, classes):
    return build_for_mnist("conv", quick=x.shape[-1] == 8)


def conv_net_for_photographs(x, classes):
    return nn.Sequential(Normalise(), *conv())


def with_dropout(net, rate):
    """The same layers, with Dropout in front of each linear layer that is not the first."""
    layers = []
    for layer in net:
        follows = any(isinstance(m, (nn.Linear, nn.Conv2d)) for m in layers)
        layers += [nn.Dropout(rate)] if rate and follows and isinstance(layer, nn.Linear) else []
        layers.append(layer)
    return nn.Sequential(*layers)


@functools.cache
def load_cifar(folder, split, quick):
    (x, y), test = cifar.load(folder, train=True), cifar.load(folder, train=False)
    held_out = (x[-HELD_OUT:], y[-HELD_OUT:]) if split == "validation" else test
    return Data(x[:-HELD_OUT], y[:-HELD_OUT], *held_out)


def table(loader, held_out):
    """Load one of scikit-learn's tables, its columns of mean 0 and deviation 1 over the rows to train on."""

    @functools.cache
    def load(folder, split, quick):
        rows, labels = loader(return_X_y=True)
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
        x, y = torch.tensor(rows)[order].float(), torch.tensor(labels)[order]
        deviation, mean = torch.std_mean(x[:-held_out], dim=0)
        x = (x - mean) / deviation
        if split == "validation":  # cut from the rows to train on
            x, y = x[:-held_out], y[:-held_out]
        return Data(x[:-held_out], y[:-held_out], x[-held_out:], y[-held_out:])

    return load


def _named(title):
    return lambda folder: title


SUBJECTS = {
    "mnist": Subject(_named("MNIST"), "MLP", "images", load_mnist, mlp(200, 80), (100, 300, 1_000, 3_000, 10_000)),
    "mnist-conv": Subject(_named("MNIST"), "conv net", "images", load_mnist, conv_net, (100, 1_000, 10_000)),
    "cifar": Subject(cifar.name, "conv net", "images", load_cifar, conv_net_for_photographs, (1_000, 4_000)),
    "cancer": Subject(
        _named("breast cancer, Wisconsin"),
        "MLP",
        "rows",
        table(load_breast_cancer, 150),
        mlp(64, 32),
        (20, 50, 100),
        500,
    ),
    "wine": Subject(_named("wine"), "MLP", "rows", table(load_wine, 50), mlp(64, 32), (15, 30), 500),
}
