"""What the MNIST experiment measures of each model."""

from functools import partial

from examples.experiments.common.measures import GRADIENT_ATTACKS, Measure, curves, judged, norms

STRENGTHS = {
    "fgsm": (0.01, 0.02, 0.05, 0.06, 0.1, 0.2, 0.3, 0.4),
    "pgd linf": (0.02, 0.05, 0.1, 0.2, 0.4),
    "pgd l2": (0.4, 1.0, 2.0),
    "noise": (0.05, 0.1, 0.2, 0.4, 0.8, 1.6),
}
EVERY = {"pgd linf": 5, "pgd l2": 5}  # every fifth image, for what is too costly on all: the first ones are harder
IMAGES = {"operator norm": 1_000, "autoattack": 1_000}  # the first ones
BOUND = ("linf", 0.1)  # (norm, ε) at which AutoAttack judges
L2_BOUND = ("l2", 1.0)
MORE_BOUNDS = (L2_BOUND, ("linf", 0.2))

_judged = partial(judged, images=IMAGES["autoattack"])
_by_gradient = partial(_judged, attacks=GRADIENT_ATTACKS)

MEASURES = {
    "curves": Measure(partial(curves, strengths=STRENGTHS, every=EVERY), (STRENGTHS, EVERY)),
    "norms": Measure(partial(norms, images=IMAGES["operator norm"]), IMAGES),
    "apgd": Measure(partial(_by_gradient, bounds=[BOUND]), (BOUND, IMAGES, GRADIENT_ATTACKS)),
    "apgd-more": Measure(partial(_by_gradient, bounds=MORE_BOUNDS), (MORE_BOUNDS, IMAGES, GRADIENT_ATTACKS)),
    "autoattack": Measure(partial(_judged, bounds=[BOUND]), (BOUND, IMAGES), costly=True),
    "autoattack-l2": Measure(partial(_judged, bounds=[L2_BOUND]), (L2_BOUND, IMAGES), costly=True),
}
