"""The trainings of the MNIST experiment by name, for each network. Settings were chosen on validation images."""

from examples.experiments.common.recipes import Recipe, flip
from examples.experiments.common.rivals import fgsm_training, finite_differences, pgd_training, trades
from torchlipreg.outputs import root_probabilities, smallest_margins

EPSILON = {"epsilon": 0.1}
WARMUP = {"target": 0.9, "increment": 0.0, "warmup": True}

RIVALS = {
    "plain": Recipe("plain"),
    "fgsm": Recipe("FGSM training", fgsm_training, EPSILON),
    "fgsm-free": Recipe("FGSM training, unclamped", fgsm_training, EPSILON | {"bounds": None}),
    "pgd": Recipe("PGD-10 training", pgd_training, EPSILON),
    "trades": Recipe("TRADES, β 6", trades, EPSILON),
    "differences-squared": Recipe("loss differences, squared", finite_differences, {"weight": 0.005}),
    "differences-light": Recipe("loss differences, squared, light", finite_differences, {"weight": 0.003}),
    "differences": Recipe("loss differences, plain", finite_differences, {"weight": 0.05, "power": 1}),
}
GLOBAL = {  # pairs between different data points, and pairs close to one
    "max": flip("max", "max", 1e-2),
    "max-local": flip("max, local", "max", 1e-4, radius=0.1, ascent="power"),
    "sum": flip("sum, local", "sum", 1e-3, radius=0.1, ascent="power"),
    "max-nesterov": flip("max, Nesterov", "max", 1e-2, ascent="nesterov"),
    "max-adam": flip("max, Adam", "max", 1e-2, ascent="adam"),
    "max-warmup": flip("max after warm-up", "max", 1e-2, discrepancy=WARMUP),
}
ROOTS = {"output": root_probabilities}
CLOSEST = ROOTS | {"choose": smallest_margins}
MLP = {
    "tv": flip("tv", "tv", 0.3, weight_fall=0.03, num_pairs=72, **CLOSEST),
    "tv-strong": flip("tv, strong", "tv", 0.4, weight_fall=0.075, num_pairs=104, **CLOSEST),
    "tv-eighth": flip("tv, an eighth", "tv", 0.2, weight_fall=0.1, num_pairs=64, interval=4, **CLOSEST),
    "tv-random": flip("tv, random points", "tv", 0.3, weight_fall=0.03, num_pairs=72, **ROOTS),
    "tv-whole": flip("tv, whole batch", "tv", 0.3, weight_fall=0.03, **ROOTS),
    "logits": flip("tv on logits", "tv", 7e-4),
    "logits-strong": flip("tv on logits, strong", "tv", 3e-3),
    "logits-interval": flip("tv on logits, every 8th step", "tv", 1e-3, interval=8),
    "logits-ptv": flip("ptv on logits", "ptv", 7e-4),
    "logits-warmup": flip("tv on logits after warm-up", "tv", 7e-4, discrepancy=WARMUP),
    "logits+fgsm": flip("tv on logits + FGSM training", "tv", 7e-4, fgsm_training, EPSILON),
    "logits+differences": flip(
        "tv on logits + loss differences", "tv", 3e-4, finite_differences, {"weight": 0.03, "power": 1}
    ),
}
CONV = {
    "tv": flip("tv", "tv", 0.8, weight_fall=0.025, num_pairs=96, radius=0.2, **CLOSEST),
    "tv-steps": flip(
        "tv, 2 ascent steps", "tv", 0.8, weight_fall=0.04, num_pairs=96, radius=0.17, ascent_steps=2, **CLOSEST
    ),
    "tv-whole": flip("tv, whole batch", "tv", 0.8, weight_fall=0.025, radius=0.2, **ROOTS),
    "logits": flip("tv on logits", "tv", 1e-3, radius=0.2),
    "logits-strong": flip("tv on logits, strong", "tv", 3e-3, radius=0.2),
    "logits-narrow": flip("tv on logits, radius 0.1", "tv", 1e-3),
    "fgsm-wide": Recipe("FGSM training, ε .2, unclamped", fgsm_training, {"epsilon": 0.2, "bounds": None}),
    "tv+fgsm": flip("tv + FGSM training", "tv", 0.2, fgsm_training, EPSILON, weight_fall=0.09, radius=0.2, **ROOTS),
}
RECIPES = {"mlp": RIVALS | MLP | GLOBAL, "conv": RIVALS | CONV | {"max": GLOBAL["max"]}}
