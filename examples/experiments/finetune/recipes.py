"""Ways to fine-tune a network that was trained plainly, by name. Settings were chosen on validation images."""

from dataclasses import dataclass

from examples.experiments.cifar import recipes as cifar
from examples.experiments.common.fast import fgsm_random_start
from examples.experiments.common.recipes import Recipe
from examples.experiments.common.rivals import pgd_training

PARTS = {0.1: "a tenth", 0.2: "a fifth", 0.4: "two fifths"}


@dataclass(frozen=True)
class FineTune(Recipe):
    """A recipe for a part of the training that the network has had.

    Attributes:
        part: Of that training's epochs; 0 leaves the network as it is.
        peak: Of the one cycle of Adam's learning rate.
        warmup: Over which share of the steps the penalty's weight grows from a tenth of itself, by `WeightWarmup`.
        frozen: How many of the first convolutions stay as they are, with all that lies between them.
    """

    part: float = 0.1
    peak: float = 8e-3
    warmup: float = 0.0
    frozen: int = 0

    def settings(self):
        return super().settings() | {name: getattr(self, name) for name in ("part", "peak", "warmup", "frozen")}


def of(recipe, part, **options):
    """The recipe's loss and penalty, for a part of the training."""
    words = "".join(f", {word}" for word in (PARTS[part], *_words(**options)))
    return FineTune(recipe.label + words, recipe.loss, recipe.arguments, recipe.penalty, part=part, **options)


def _words(peak=None, warmup=0.0, frozen=0):
    words = [f"peak {peak:g}"] if peak is not None else []
    words += [f"warm-up {warmup:g}"] if warmup else []
    return words + ([f"first {frozen} layers frozen"] if frozen else [])


PLAIN = Recipe("plain")
FGSM = Recipe("FGSM, random start", fgsm_random_start, {"epsilon": cifar.EPSILON})
HALF = Recipe("FGSM on a half", fgsm_random_start, {"epsilon": cifar.EPSILON, "share": 0.5})
PGD = Recipe("PGD-7", pgd_training, {"epsilon": cifar.EPSILON, "steps": 7})
TV, STRONG, FOURTH = cifar.tv(10, 1 / 4), cifar.tv(20, 1 / 4), cifar.tv(10, 1 / 4, interval=4)
LOGITS, LOGITS_STRONG = (cifar.tv_logits(weight, 1 / 4) for weight in (0.3, 1))
TUNED = {  # to choose from, on validation images only
    "tv-quarter-20-warm-0.008": of(STRONG, 0.1, peak=8e-3, warmup=1.0),
    "logits-quarter-1-warm-0.008": of(LOGITS_STRONG, 0.1, peak=8e-3, warmup=1.0),
    "logits-quarter-warm-0.008": of(LOGITS, 0.1, peak=8e-3, warmup=1.0),
    "tv-quarter-warm-0.008": of(TV, 0.1, peak=8e-3, warmup=1.0),
    "tv-fourth-warm-0.008": of(FOURTH, 0.1, peak=8e-3, warmup=1.0),
    "logits-quarter-warm": of(LOGITS, 0.1, peak=4e-3, warmup=1.0),
    "tv-quarter-20-warm": of(STRONG, 0.1, peak=4e-3, warmup=1.0),
    "tv-quarter-warm": of(TV, 0.1, peak=4e-3, warmup=0.5),
    "tv-fourth-warm": of(FOURTH, 0.1, peak=4e-3, warmup=0.5),
    "tv-quarter-cold": of(TV, 0.1, peak=4e-3),
    "logits-quarter-cold": of(LOGITS, 0.1, peak=4e-3),
    **{f"tv-fourth-{peak:g}": of(FOURTH, 0.1, peak=peak) for peak in (1e-3, 2e-3)},
    **{f"fgsm-{peak:g}": of(FGSM, 0.1, peak=peak) for peak in (1e-3, 2e-3, 4e-3, 8e-3)},
    **{f"pgd-{peak:g}": of(PGD, 0.1, peak=peak) for peak in (2e-3, 8e-3)},
}
WARM = {"warmup": 1.0}  # without it a strong penalty ruins a network that was trained plainly
BASE = {"base": FineTune("as it was", part=0.0)}
WAYS = {  # name: (recipe, what is special of it)
    "plain": (PLAIN, {}),
    "fgsm": (FGSM, {}),
    "fgsm-half": (HALF, {}),
    "pgd": (PGD, {}),
    "tv": (TV, WARM),
    "tv-strong": (STRONG, WARM),
    "logits": (LOGITS, WARM),
    "tv-fourth": (FOURTH, WARM),
}
MAIN = {
    f"{way}{end}": of(recipe, part, **more)
    for part, end in ((0.1, ""), (0.2, "-2"))
    for way, (recipe, more) in WAYS.items()
}
RECIPES = BASE | MAIN | {"tv-frozen": of(TV, 0.1, frozen=2, **WARM), "tv-cold": of(TV, 0.1)}
