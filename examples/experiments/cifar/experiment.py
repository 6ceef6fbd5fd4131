"""The CIFAR-10 experiment, put together: in a size for two cores, one for a GPU, one for a GPU's first minutes."""

from functools import partial

from examples.experiments.cifar.data import load
from examples.experiments.cifar.figures import draw
from examples.experiments.cifar.measures import measures
from examples.experiments.cifar.nets import build
from examples.experiments.cifar.recipes import RECIPES
from examples.experiments.cifar.tables import tables
from examples.experiments.cifar.training import SHIFT, ImageTraining
from examples.experiments.common.experiment import Experiment

MODULE = "examples.experiments.cifar"


def at_scale(name, images, epochs, factor, judged, thoroughly=1_000, learning_rate=4e-3):
    """The experiment with so many training images and networks `factor` times as wide.

    Gradient attacks see `judged` images, all of AutoAttack `thoroughly` many.
    """
    return Experiment(
        name=name,
        images=("CIFAR-10", "enlarged digits"),
        load=partial(load, images=images),
        build=partial(build, factor=factor),
        epochs=dict.fromkeys(RECIPES, epochs),
        recipes=RECIPES,
        measures=measures(judged, thoroughly),
        tables=partial(tables, judged=judged, thoroughly=thoroughly),
        draw=partial(draw, name=name),
        brief=(
            *("plain", "fgsm-6", "fgsm", "n-fgsm", "pgd", "trades"),
            *("tv-fourth", "tv-quarter-10", "tv-quarter", "tv-whole"),
        ),
        quick_recipes=("plain", "fgsm", "tv-quarter", "prior-guided"),
        quick_measures=("curves", "corruptions", "apgd"),
        quick_epochs=20,
        learning_rate=learning_rate,
        training=ImageTraining,
        stated={
            "images": images,
            "width": factor,
            "augmentation": f"flips, shifts of {SHIFT}",
            "schedule": "one cycle",
        },
        timing=(8, 16),
    )


SCALES = {
    "cores": at_scale("cifar", images=10_000, epochs=10, factor=1, judged=300),
    "gpu": at_scale("cifar-gpu", images=45_000, epochs=30, factor=4, judged=1_000, learning_rate=2e-3),
    "gpu-short": at_scale(
        "cifar-gpu-short", images=45_000, epochs=8, factor=4, judged=300, thoroughly=300, learning_rate=2e-3
    ),
}
