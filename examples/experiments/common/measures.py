"""What the MNIST experiment measures of a trained model: each measure is (model, x, y, quick) -> {name: number}."""

import functools
import logging
import math

from _attacks import autoattack, fgsm, gaussian_noise, pgd

from torchlipreg import operator_norm

STRENGTHS = {
    "fgsm": (0.01, 0.02, 0.05, 0.06, 0.1, 0.2, 0.3, 0.4),
    "pgd linf": (0.02, 0.05, 0.1, 0.2, 0.4),
    "pgd l2": (0.4, 1.0, 2.0),
    "noise": (0.05, 0.1, 0.2, 0.4, 0.8, 1.6),
}
PERTURB = {
    "fgsm": fgsm,
    "pgd linf": pgd,
    "pgd l2": functools.partial(pgd, norm="l2"),
    "noise": functools.partial(gaussian_noise, bounds=None),  # the report's formula has no clamp
}
EVERY = {"pgd linf": 5, "pgd l2": 5}  # every fifth image, for what is too costly on all: the first ones are harder
IMAGES = {"operator norm": 1_000, "autoattack": 1_000}  # the first ones
BATCH = 250  # larger ones fall out of the cache of one core
GRADIENT_ATTACKS = ("apgd-ce", "apgd-t")  # of AutoAttack's four: nearly its verdict, at a quarter of its cost
BOUND = ("linf", 0.1)  # (norm, ε) at which AutoAttack judges; all four of its attacks take minutes
L2_BOUND = ("l2", 1.0)
MORE_BOUNDS = (L2_BOUND, ("linf", 0.2))


def accuracy(model, x, y):
    return (model(x).argmax(1) == y).float().mean().item()


def accuracy_under(perturb, model, x, y, strength):
    """In batches; the noise of each image depends on its place only."""
    if perturb is PERTURB["noise"]:
        return accuracy(model, perturb(model, x, y, strength), y)
    batches = zip(x.split(BATCH), y.split(BATCH), strict=True)
    return sum(accuracy(model, perturb(model, a, b, strength), b) * len(b) for a, b in batches) / len(y)


def curves(model, x, y, quick):
    found = {"clean": accuracy(model, x, y)}
    for name, strengths in STRENGTHS.items():
        every = EVERY.get(name, 1)
        for strength in strengths:
            found[f"{name} {strength}"] = accuracy_under(PERTURB[name], model, x[::every], y[::every], strength)
    return found


def norms(model, x, y, quick):
    """The largest operator norm of the Jacobian at an image, from ℓ∞ to ℓ∞ and from ℓ2 to ℓ2.

    From ℓ∞ to ℓ2, which the penalty of these recipes is about, it is NP-hard to compute.
    """
    x = x[: 50 if quick else IMAGES["operator norm"]]
    return {
        "operator norm linf": operator_norm(model, x, input_norm=math.inf, output_norm=math.inf).amax().item(),
        "operator norm l2": operator_norm(model, x, tol=1e-3).amax().item(),
    }


def apgd(model, x, y, quick):
    """AutoAttack's two gradient attacks alone."""
    return _judge(model, x, y, quick, GRADIENT_ATTACKS, *BOUND)


def apgd_more(model, x, y, quick):
    judged = (_judge(model, x, y, quick, GRADIENT_ATTACKS, *bound) for bound in MORE_BOUNDS)
    return {name: value for found in judged for name, value in found.items()}


def standard(model, x, y, quick):
    """All four attacks."""
    return _judge(model, x, y, quick, None, *BOUND)


def standard_l2(model, x, y, quick):
    return _judge(model, x, y, quick, None, *L2_BOUND)


def _judge(model, x, y, quick, attacks, norm, epsilon):
    images = 20 if quick else IMAGES["autoattack"]
    x, y = x[:images], y[:images]
    logging.getLogger("auto-attack").setLevel(logging.ERROR)
    name = "autoattack" if attacks is None else "apgd"
    return {f"{name} {norm} {epsilon}": accuracy(model, autoattack(model, x, y, epsilon, norm, attacks, BATCH), y)}


MEASURES = {
    "curves": curves,
    "norms": norms,
    "apgd": apgd,
    "apgd-more": apgd_more,
    "autoattack": standard,
    "autoattack-l2": standard_l2,
}
COSTLY = ("autoattack", "autoattack-l2")  # minutes each
SETTINGS = {  # what of this file a stored number depends on: when it changes, the number is made anew
    "curves": repr((STRENGTHS, EVERY)),
    "norms": repr(IMAGES),
    "apgd": repr((BOUND, IMAGES, GRADIENT_ATTACKS)),
    "apgd-more": repr((MORE_BOUNDS, IMAGES, GRADIENT_ATTACKS)),
    "autoattack": repr((BOUND, IMAGES)),
    "autoattack-l2": repr((L2_BOUND, IMAGES)),
}
