"""An experiment: a data set, networks, ways to train them, and what is measured of what came out."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from torch import Tensor


class Data(NamedTuple):
    train_x: Tensor  # (N, channels, height, width) in [0, 1]
    train_y: Tensor
    x: Tensor  # to judge by: images that training never sees
    y: Tensor


def no_pictures(results, folder):
    return []


@dataclass(frozen=True)
class Experiment:
    """Functions are those of modules, which travel to other processes by name: no lambdas.

    Attributes:
        name: Of its files, and of its places in the documentation.
        images: What the images are called, and those of the quick form.
        load: (folder, split, quick) -> :class:`Data`; split is "validation", to choose settings by, or "test".
        build: (network, quick) -> untrained model.
        epochs: By network.
        recipes: Network -> name -> :class:`~examples.experiments.common.recipes.Recipe`; has "plain".
        measures: Name -> :class:`~examples.experiments.common.measures.Measure`.
        tables: (results, network) -> tables of common/tables.py.
        draw: (results, folder) -> paths of the pictures.
        brief: Recipes of the README's own table, in its order.
        quick_recipes, quick_measures, quick_epochs: Of the quick form.
        training: Class of a training run, :class:`~examples.experiments.common.training.Training` where it is None.
        stated: What else a training depends on, by name, for the records.
        timing: Of the step times: how many steps in a round, a multiple of every `interval`, and how many rounds.
        device: "cpu" or "cuda".
        results_name: Of the results files; NAME_robustness where it is empty.
    """

    name: str
    images: tuple[str, str]
    load: Callable
    build: Callable
    epochs: dict
    recipes: dict
    measures: dict
    tables: Callable
    draw: Callable = no_pictures
    brief: tuple = ()
    quick_recipes: tuple = ("plain",)
    quick_measures: tuple = ()
    quick_epochs: int = 30  # of few steps
    batch: int = 128
    learning_rate: float = 1e-3
    training: type | None = None
    stated: dict = field(default_factory=dict)
    timing: tuple[int, int] = (8, 40)
    device: str = "cpu"
    results_name: str = ""

    @property
    def records(self):
        return self.results_name or f"{self.name}_robustness"

    def also(self, recipes):
        """Return the same experiment with more recipes, network -> name -> Recipe; what is trained already stays."""
        return replace(self, recipes={network: of | recipes.get(network, {}) for network, of in self.recipes.items()})

    def number_of_epochs(self, network, quick):
        return self.quick_epochs if quick else self.epochs[network]
