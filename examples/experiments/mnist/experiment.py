"""The MNIST experiment, put together."""

from examples.experiments.common.experiment import Experiment
from examples.experiments.mnist.data import build, load
from examples.experiments.mnist.figures import draw
from examples.experiments.mnist.measures import MEASURES
from examples.experiments.mnist.recipes import RECIPES
from examples.experiments.mnist.tables import tables

MODULE = "examples.experiments.mnist"
MNIST = Experiment(
    name="mnist",
    images=("MNIST", "digits"),
    load=load,
    build=build,
    epochs={"mlp": 5, "conv": 3},
    recipes=RECIPES,
    measures=MEASURES,
    tables=tables,
    draw=draw,
    quick_recipes=("plain", "fgsm", "tv", "max", "logits-warmup"),
    quick_measures=("curves", "norms", "apgd"),
)
