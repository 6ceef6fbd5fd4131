"""The trainings of the CIFAR-10 experiment by name. Settings were chosen on validation images."""

import math

from examples.experiments.common.fast import fgsm_random_start, gaussian_noise, noise_fgsm, prior_guided
from examples.experiments.common.recipes import Recipe
from examples.experiments.common.rivals import finite_differences, pgd_training, trades
from torchlipreg.outputs import root_probabilities

PIXEL = 1 / 255
EPSILON = 8 * PIXEL
BATCH = 128


def fgsm(pixels=8, share=1.0, label=""):
    return Recipe(label or f"FGSM, ε {pixels}", fgsm_random_start, {"epsilon": pixels * PIXEL, "share": share})


def tv(weight, share=1.0, pixels=8, label="√softmax", **options):
    """The penalty on a random part of each batch; its weight counts movements over ε."""
    part = {} if share == 1 else {"num_pairs": round(share * BATCH)}
    words = {1: "whole batch", 1 / 10: "a tenth", 1 / 2: "a half", 1 / 4: "a quarter", 1 / 8: "an eighth"}[share]
    radius = {"radius": pixels * PIXEL, "scale": pixels * PIXEL, "input_norm": math.inf}
    penalty = {"method": "tv", "weight": weight, "output": root_probabilities} | radius | part | options
    words = words.replace("a ", "the surest ") if "choose" in options else words
    words += {1: "", 2: " every 2nd step", 4: " every 4th step"}[options.get("interval", 1)]
    return Recipe(f"tv on {label}, {words} ({weight:g})" + (f", ε {pixels}" if pixels != 8 else ""), penalty=penalty)


def largest_margins(logits, count):
    """The rows that a classifier is surest of, for ``choose``."""
    first, second = logits.detach().topk(2, dim=1).values.unbind(1)
    return (first - second).topk(min(count, len(logits))).indices


def tv_surest(weight, **options):
    """The penalty on the quarter of each batch that the net is surest of."""
    return tv(weight, 1 / 4, choose=largest_margins, **options)


def tv_logits(weight, share):
    return tv(weight, share, label="logits", output=None)


DECISIVE = {  # what decides comes first
    "plain": Recipe("plain"),
    "fgsm": fgsm(label="FGSM, random start"),
    "fgsm-quarter": fgsm(share=1 / 4, label="FGSM on a quarter"),
    "n-fgsm": Recipe("N-FGSM", noise_fgsm, {"epsilon": EPSILON}),
    "tv-quarter": tv(20, 1 / 4),
    "tv-eighth": tv(10, 1 / 8),
    "tv-quarter-10": tv(10, 1 / 4),
    "pgd": Recipe("PGD-7", pgd_training, {"epsilon": EPSILON, "steps": 7}),
}
RIVALS = {
    "noise": Recipe("Gaussian noise .1", gaussian_noise, {"sigma": 0.1}),
    "fgsm-half": fgsm(share=1 / 2, label="FGSM on a half"),
    "prior-guided": Recipe("prior-guided FGSM", prior_guided, {"epsilon": EPSILON}),
    "differences": Recipe(
        "loss differences (Finlay, Oberman)", finite_differences, {"weight": EPSILON**2, "step": EPSILON}
    ),
    "trades": Recipe("TRADES, β 6", trades, {"epsilon": EPSILON}),
}
OURS = {
    "tv-eighth-20": tv(20, 1 / 8),
    "logits-quarter": tv_logits(0.3, 1 / 4),
    "tv-alternate": tv(10, 1 / 4, interval=2),
    "tv-fourth": tv(10, 1 / 4, interval=4),
    "tv-tenth": tv(10, 1 / 10),
    "tv-half-alternate": tv(25, 1 / 2, interval=2),
    "tv-surest": tv_surest(12),
    "tv-surest-fourth": tv_surest(10, interval=4),
    "tv-whole-17": tv(17),
    "tv-whole": tv(20),
    "tv-whole-30": tv(30),
    "tv-whole-35": tv(35),
}
KNOBS = {  # of the frontier: ε of training, β, the weight
    "fgsm-4": fgsm(4),
    "fgsm-6": fgsm(6),
    "n-fgsm-4": Recipe("N-FGSM, ε 4", noise_fgsm, {"epsilon": 4 * PIXEL}),
    "trades-2": Recipe("TRADES, β 2", trades, {"epsilon": EPSILON, "beta": 2.0}),
    "tv-quarter-5": tv(5, 1 / 4),
    "tv-quarter-30": tv(30, 1 / 4),
    "tv-quarter-40": tv(40, 1 / 4),
    "tv-wide-quarter": tv(16, 1 / 4, pixels=10),
}
COLLAPSE = {  # single-step training at twice the perturbation
    "fgsm-16": fgsm(16),
    "n-fgsm-16": Recipe("N-FGSM, ε 16", noise_fgsm, {"epsilon": 16 * PIXEL}),
    "tv-quarter-16": tv(20, 1 / 4, pixels=16),
}
ALL = DECISIVE | RIVALS | OURS | KNOBS | COLLAPSE
RECIPES = {network: ALL for network in ("conv", "conv-bn", "resnet", "vit")}
