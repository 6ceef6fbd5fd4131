"""The models of the cost benchmark, the ways to train them, and what each way should cost."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from examples.experiments.common import rivals
from torchlipreg import LipschitzPenalty

EPSILON = 8 / 255
PENALTY = {"weight": 1e-3, "radius": EPSILON, "input_norm": math.inf, "bounds": (0, 1), "scale": 1}


def mlp(*widths):
    layers = [layer for sizes in pairwise(widths) for layer in (nn.Linear(*sizes), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *layers[:-1])


def timm_model(name, size, classes=10, **options):
    import timm

    if name.startswith("vit"):
        name, options = f"{name}_patch16_224", {"img_size": size, **options}
    return timm.create_model(name, num_classes=classes, **options)


@dataclass(frozen=True)
class Subject:
    """A model to train: how to build it for images of a size, its default size on a CPU, its channels."""

    build: Callable[[int], nn.Module]
    size: int
    channels: int = 3

    def image_size(self, device):
        """Return the default image size: larger for a GPU, which the other would leave idle."""
        return self.size if device == "cpu" or self.channels == 1 else 224


SUBJECTS = {
    "two-layer": Subject(lambda size: mlp(size**2, 64, 10), 8, channels=1),
    "mlp": Subject(lambda size: mlp(size**2, 200, 80, 10), 28, channels=1),
    **{
        name: Subject(partial(timm_model, name), 64)
        for name in ("resnet18", "resnet50", "vit_tiny", "vit_small", "vit_base")
    },
}


@dataclass(frozen=True)
class Work:
    """What a step consists of, in forwards of the whole batch.

    A gradient with respect to the weights or to a layer's input costs as much as the layer's forward. Plain training
    needs no gradient with respect to the images, which saves it the first layer's: 3 − `first` in all.

    Attributes:
        first: The first layer's share of a forward.
        follows: The model has BatchNorm, whose statistics the penalty lets follow the data.
        reuses: The loop's outputs serve as f(x).
    """

    first: float
    follows: bool
    reuses: bool

    @property
    def whole(self):
        """A forward, and the gradients of all weights."""
        return 3 - self.first

    @property
    def image_gradient(self):
        """A forward, and the gradient of the images alone."""
        return 2


@dataclass(frozen=True)
class Contender:
    """One way to train.

    Attributes:
        start: From a batch size to a function (model, x, y) -> loss, with any state of its own.
        count: From :class:`Work` to the cost of a step in forwards.
        period: Steps after which it does the same again: the interval of a lazy penalty.
        rival: Not ours.
    """

    start: Callable[[int], Callable]
    count: Callable[[Work], float]
    period: int = 1
    rival: bool = False


def penalised(method, share=1.0, interval=1, **options):
    def start(batch):
        points = max(1, round(share * batch))
        penalty = LipschitzPenalty(method, num_pairs=points, interval=interval, **PENALTY, **options)

        def loss(model, x, y):
            outputs = model(x)
            return F.cross_entropy(outputs, y) + penalty(model, x, outputs)

        loss.penalty = penalty
        return loss

    def count(work):
        ascent = options.get("ascent_steps", 1) * work.image_gradient
        if method in ("max", "sum"):  # both points of a pair move; BatchNorm's statistics are those of data points
            per_pair = 2 * ascent + (2 + work.follows) * work.whole
        else:
            per_pair = ascent + (1 if work.reuses else 2) * work.whole
        return work.whole + share * per_pair / interval

    return Contender(start, count, interval)


def plain_on(share):
    """What a part of the batch costs by itself: small batches use a processor less well."""

    def loss(model, x, y):
        points = max(1, round(share * len(x)))
        return rivals.plain(model, x[:points], y[:points])

    return Contender(lambda batch: loss, lambda work: share * work.whole, rival=True)


def rival(loss, count, **options):
    return Contender(lambda batch: partial(loss, **options), count, rival=True)


def second_order(loss):
    def with_plain_attention(*arguments, **options):
        with sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
            return loss(*arguments, **options)

    return with_plain_attention


CONTENDERS = {
    "plain": rival(rivals.plain, lambda w: w.whole),
    "plain, 1/8 of batch": plain_on(1 / 8),
    "tv": penalised("tv"),
    "tv, 1/8 of batch": penalised("tv", 1 / 8),
    "tv, interval=8": penalised("tv", interval=8),
    "tv, 2 steps": penalised("tv", ascent_steps=2),
    "ptv": penalised("ptv"),
    "max, N/2 pairs": penalised("max", 1 / 2),
    "sum, N/2 pairs": penalised("sum", 1 / 2),
    "FGSM training": rival(rivals.fgsm_training, lambda w: w.image_gradient + w.whole, epsilon=EPSILON),
    "PGD-10 training": rival(rivals.pgd_training, lambda w: 10 * w.image_gradient + w.whole, epsilon=EPSILON),
    "TRADES": rival(rivals.trades, lambda w: 1 + 10 * w.image_gradient + 2 * w.whole, epsilon=EPSILON),
    "input gradient": rival(  # the backward's own backward has two products for each of its one
        second_order(rivals.input_gradient), lambda w: w.image_gradient + 2 + w.whole - 1, weight=1e-3
    ),
    "finite differences": rival(
        rivals.finite_differences, lambda w: w.image_gradient + 2 * w.whole - 1, weight=1e-3, step=EPSILON
    ),
    "random Jacobian": rival(
        second_order(rivals.random_jacobian), lambda w: w.image_gradient + 2 + w.whole - 1, weight=1e-3
    ),
}
