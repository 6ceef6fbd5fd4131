"""What is measured of a trained model: functions (model, x, y, quick, ...) -> {name: number}."""

import functools
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from examples.experiments.common.attacks import autoattack, fgsm, gaussian_noise, pgd
from torchlipreg import operator_norm

PERTURB = {
    "fgsm": fgsm,
    "pgd linf": pgd,
    "pgd l2": functools.partial(pgd, norm="l2"),
    "noise": functools.partial(gaussian_noise, bounds=None),  # the report's formula has no clamp
}
BATCH = 250  # larger ones fall out of the cache of one core
GRADIENT_ATTACKS = ("apgd-ce", "apgd-t")  # of AutoAttack's four: nearly its verdict, at a quarter of its cost


@dataclass(frozen=True)
class Measure:
    """A measure, and what its numbers depend on: when that changes, stored numbers are made anew."""

    function: Callable
    depends_on: Any
    costly: bool = False  # minutes for each model

    @property
    def settings(self):
        return repr(self.depends_on)


def accuracy(model, x, y):
    return (model(x).argmax(1) == y).float().mean().item()


def accuracy_under(perturb, model, x, y, strength):
    """In batches; the noise of each image depends on its place only."""
    if perturb is PERTURB["noise"]:
        return accuracy(model, perturb(model, x, y, strength), y)
    batches = zip(x.split(BATCH), y.split(BATCH), strict=True)
    return sum(accuracy(model, perturb(model, a, b, strength), b) * len(b) for a, b in batches) / len(y)


def curves(model, x, y, quick, strengths, every):
    """Accuracy at every strength; `every` says for what only each so manieth image is used."""
    found = {"clean": accuracy(model, x, y)}
    for name, values in strengths.items():
        step = every.get(name, 1)
        for strength in values:
            found[f"{name} {strength}"] = accuracy_under(PERTURB[name], model, x[::step], y[::step], strength)
    return found


def norms(model, x, y, quick, images):
    """The largest operator norm of the Jacobian at an image, from ℓ∞ to ℓ∞ and from ℓ2 to ℓ2.

    From ℓ∞ to ℓ2, which the penalty of these recipes is about, it is NP-hard to compute.
    """
    x = x[: 50 if quick else images]
    return {
        "operator norm linf": operator_norm(model, x, input_norm=math.inf, output_norm=math.inf).amax().item(),
        "operator norm l2": operator_norm(model, x, tol=1e-3).amax().item(),
    }


def judged(model, x, y, quick, images, bounds, attacks=None, batch=BATCH):
    """Accuracy under AutoAttack, all of it or some of its attacks, within each of `bounds`: (norm, ε)."""
    images = 20 if quick else images
    x, y = x[:images], y[:images]
    logging.getLogger("auto-attack").setLevel(logging.ERROR)
    name = "autoattack" if attacks is None else "apgd"
    return {
        f"{name} {norm} {epsilon}": accuracy(model, autoattack(model, x, y, epsilon, norm, attacks, batch), y)
        for norm, epsilon in bounds
    }
