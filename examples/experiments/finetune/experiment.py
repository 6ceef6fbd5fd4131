"""The fine-tuning experiment, put together from the CIFAR-10 experiment's parts."""

from dataclasses import replace
from functools import partial

from examples.experiments.cifar.measures import EPSILON, measures
from examples.experiments.common.measures import Measure, curves
from examples.experiments.finetune.figures import draw
from examples.experiments.finetune.recipes import RECIPES, TUNED
from examples.experiments.finetune.report import tables
from examples.experiments.finetune.training import BASE, FineTuning

MODULE = "examples.experiments.finetune"
NETWORKS = ("conv", "conv-bn")
JUDGED = 200  # images, by AutoAttack and its gradient attacks
NOISES, WEAK, EVERY = {"noise": (0.1,)}, {"pgd linf": (EPSILON,)}, {"pgd linf": 10}


def experiment(bases, split="test"):
    """Fine-tuning of the networks in the folder `bases`; more ways to choose from on validation images."""
    recipes = RECIPES | TUNED if split == "validation" else RECIPES
    of_images = {
        "curves": Measure(partial(curves, strengths=NOISES, every={}), NOISES),
        "pgd": Measure(partial(curves, strengths=WEAK, every=EVERY), (WEAK, EVERY)),  # to choose settings by
        **{name: measure for name, measure in measures(JUDGED, JUDGED).items() if name in ("apgd", "autoattack")},
    }
    return replace(
        BASE,
        name="finetune",
        results_name="finetune" + ("-validation" if split == "validation" else ""),
        recipes=dict.fromkeys(NETWORKS, recipes),
        measures=of_images,
        tables=tables,
        draw=draw,
        quick_recipes=("base", "plain", "fgsm", "tv-fourth"),
        quick_measures=("curves", "apgd"),
        training=partial(FineTuning, bases=bases),
        stated=BASE.stated | {"base": "a plain training of as many epochs at this learning rate"},
    )
