"""Pairs of data and network. A new one is a function here, or in a file of its own, and a line in SUBJECTS."""

import re
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import timm
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from torch import nn
from torchvision.datasets import MNIST

from examples.experiments.common import cifar


class Data(NamedTuple):
    train_x: torch.Tensor
    train_y: torch.Tensor
    x: torch.Tensor  # to judge by
    y: torch.Tensor


class Subject(NamedTuple):
    """A pair of data and network.

    Attributes:
        label: For the table.
        load: (folder, quick) -> :class:`Data`.
        build: () -> network.
        epochs: Of Adam.
        normalization: What the loop does to the data before the network sees it; (mean, std) or None.
        bounds: Range of the raw data that an attack keeps to, or None.
        regression: Whether targets are numbers, standardised.
    """

    label: str
    load: Callable
    build: Callable
    epochs: int
    normalization: tuple | None = None
    bounds: tuple | None = (0.0, 1.0)
    regression: bool = False


def split(x, y, size):
    """Return training and test rows in one fixed random order."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    return Data(x[:size], y[:size], x[size:], y[size:])


def digits(folder, quick):
    images, labels = load_digits(return_X_y=True)
    return split(torch.tensor(images / 16).float().view(-1, 1, 8, 8), torch.tensor(labels), 1_200)


def mnist(folder, quick):
    train, test = (MNIST(folder, train=part, download=True) for part in (True, False))
    return Data(
        *(train.data[:6_000, None] / 255, train.targets[:6_000]), *(test.data[:500, None] / 255, test.targets[:500])
    )


def cifar10(folder, quick):
    (x, y), (test_x, test_y) = cifar.load(folder, True), cifar.load(folder, False)
    return Data(x[:5_000], y[:5_000], test_x[:500], test_y[:500])


def tumours(folder, quick):
    columns, labels = load_breast_cancer(return_X_y=True)
    return split(standardised(columns), torch.tensor(labels), 400)


def diabetes(folder, quick):
    columns, target = load_diabetes(return_X_y=True)
    return split(standardised(columns), standardised(target[:, None]), 320)


def standardised(columns):
    x = torch.tensor(columns, dtype=torch.float64)
    return ((x - x.mean(0)) / x.std(0)).float()


LENGTH = 24  # words of a text
WORDS = 2_000


def texts(folder, quick):
    """Which of five libraries does a passage of documentation come from? Word numbers, shape (N, 24), 0 for others."""
    import numpy
    import sklearn.utils
    import torchvision.transforms

    libraries = (numpy, torch, torch.nn, sklearn.utils, torchvision.transforms)
    passages, labels = [], []
    for label, library in enumerate(libraries):
        documented = {getattr(value, "__doc__", None) for value in vars(library).values()}
        found = sorted(text for text in documented if isinstance(text, str))
        words = [word for text in found for word in re.findall(r"[a-z]{3,}", text.lower())]
        found = [words[i : i + LENGTH] for i in range(0, min(len(words), 600 * LENGTH) - LENGTH, LENGTH)]
        passages, labels = passages + found, labels + [label] * len(found)
    counts = {}
    for word in (word for passage in passages for word in passage):
        counts[word] = counts.get(word, 0) + 1
    number = {word: i + 1 for i, word in enumerate(sorted(counts, key=lambda w: (-counts[w], w))[:WORDS])}
    x = torch.tensor([[number.get(word, 0) for word in passage] for passage in passages])
    return split(x, torch.tensor(labels), int(0.8 * len(x)))


class Tagger(nn.Module):
    """Words through embeddings, which are what a penalty moves: `embed`, then the network of embeddings."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(WORDS + 1, 32)
        self.conv, self.last = nn.Conv1d(32, 64, 3, padding=1), nn.Linear(64, 5)

    def forward(self, embedded):
        return self.last(self.conv(embedded.mT).relu().amax(2))


def mlp(*widths):
    layers = [nn.Flatten()]
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def conv(channels, classes=10, norm=None, width=24):
    layers = []
    for inputs, outputs in ((channels, width), (width, 2 * width), (2 * width, 4 * width)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)]
        layers += [*([norm(outputs)] if norm else []), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16 * width, classes))


def conv_bn(channels):
    return conv(channels, norm=nn.BatchNorm2d)


def vit():
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=64, depth=3, num_heads=4, num_classes=10
    )


NORMALISED = (cifar.MEAN, cifar.STD)
SUBJECTS = {
    "digits-mlp": Subject("digits, MLP", digits, lambda: mlp(64, 256, 128, 10), 40),
    "digits-bn": Subject("digits, conv net with BatchNorm", digits, lambda: conv_bn(1), 20),
    "mnist-conv": Subject("MNIST (6,000), conv net", mnist, lambda: conv(1, width=12), 8),
    "cifar-conv": Subject("CIFAR-10 raw, conv net", cifar10, lambda: conv(3), 8),
    "cifar-bn": Subject("CIFAR-10 raw, with BatchNorm", cifar10, lambda: conv_bn(3), 6),
    "cifar-normalised-conv": Subject("CIFAR-10 normalised, conv net", cifar10, lambda: conv(3), 8, NORMALISED),
    "cifar-normalised-bn": Subject("CIFAR-10 normalised, with BatchNorm", cifar10, lambda: conv_bn(3), 6, NORMALISED),
    "cifar-vit": Subject("CIFAR-10 normalised, small ViT", cifar10, vit, 8, NORMALISED),
    "tumours-mlp": Subject("breast cancer, MLP", tumours, lambda: mlp(30, 64, 64, 2), 40, bounds=None),
    "texts-conv": Subject("texts by embeddings", texts, Tagger, 10, bounds=None),
    "diabetes-mlp": Subject("diabetes, regression", diabetes, lambda: mlp(10, 64, 64, 1), 30, None, None, True),
}
