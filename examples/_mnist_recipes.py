"""The trainings of the MNIST experiment by name, for each network. Settings were chosen on validation images."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from _rivals import fgsm_training, finite_differences, pgd_training, plain, trades

from torchlipreg import LipschitzPenalty


@dataclass(frozen=True)
class Recipe:
    label: str
    loss: Callable = plain  # of _rivals.py
    arguments: dict = field(default_factory=dict)  # of the loss
    penalty: dict | None = None  # arguments of LipschitzPenalty, which is added to the loss
    radius_decay: dict | None = None  # arguments of RadiusDecay, stepped once per epoch
    discrepancy: dict | None = None  # arguments of DiscrepancyWeight, stepped by the running training accuracy

    def settings(self):
        """What the training depends on, defaults included, in words."""
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())
        words = {"loss": f"{self.loss.__name__}({arguments})"}
        if self.penalty is not None:
            words["penalty"] = repr(LipschitzPenalty(**self.penalty))
        return words | {name: str(value) for name in ("radius_decay", "discrepancy") if (value := getattr(self, name))}


EPSILON = {"epsilon": 0.1}
# Attacks bounded in ℓ∞ are answered in ℓ∞.
TV = {"method": "tv", "weight": 1e-3, "input_norm": math.inf}
MAX = {"method": "max", "weight": 1e-2, "input_norm": math.inf}
SUM = {"method": "sum", "weight": 1e-2, "input_norm": math.inf}
WARMUP = {"target": 0.9, "increment": 0.0, "warmup": True}

RIVALS = {
    "plain": Recipe("plain"),
    "fgsm": Recipe("FGSM training", fgsm_training, EPSILON),
    "pgd": Recipe("PGD-10 training", pgd_training, EPSILON),
    "trades": Recipe("TRADES, β 6", trades, EPSILON),
    "differences-squared": Recipe("loss differences, squared", finite_differences, {"weight": 0.01}),
    "differences": Recipe("loss differences, plain", finite_differences, {"weight": 0.1, "power": 1}),
}
FLIP = {
    "tv": Recipe("tv", penalty=TV),
    "tv-strong": Recipe("tv, strong", penalty=TV | {"weight": 3e-3}),
    "tv-eighth": Recipe("tv, an eighth", penalty=TV | {"weight": 2e-3, "num_pairs": 16}),
    "tv-interval": Recipe("tv, every 8th step", penalty=TV | {"interval": 8}),
    "ptv": Recipe("ptv", penalty=TV | {"method": "ptv"}),
    "max": Recipe("max", penalty=MAX),
    "sum": Recipe("sum", penalty=SUM),
    "max-nesterov": Recipe("max, Nesterov", penalty=MAX | {"ascent": "nesterov"}),
    "max-adam": Recipe("max, Adam", penalty=MAX | {"ascent": "adam"}),
    "tv-warmup": Recipe("tv after warm-up", penalty=TV, discrepancy=WARMUP),
    "max-warmup": Recipe("max after warm-up", penalty=MAX, discrepancy=WARMUP),
    "tv+fgsm": Recipe("tv + FGSM training", fgsm_training, EPSILON, penalty=TV),
    "tv+pgd": Recipe("tv + PGD-10 training", pgd_training, EPSILON, penalty=TV),
}
RECIPES = {"mlp": RIVALS | FLIP, "conv": RIVALS | FLIP}
