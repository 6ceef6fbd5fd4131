"""A fine-tuning: the plain network of the CIFAR-10 experiment, its training gone on with in another way."""

from pathlib import Path

import torch
from torch import nn

from examples.experiments.cifar.experiment import SCALES
from examples.experiments.cifar.training import ImageTraining
from examples.experiments.common.sweep import Job
from torchlipreg import WeightWarmup

BASE = SCALES["cores"]


def base_job(network, seed, data, quick, bases, command=""):
    """The plain training, with a record as the CIFAR-10 experiment keeps it: those that are there already serve."""
    recipe = BASE.recipes[network]["plain"]
    return Job(BASE, network, "plain", recipe, seed, ("curves",), data, "test", quick, Path(bases), command)


class FineTuning(ImageTraining):
    """Begins with the weights of a trained network in the folder `bases`."""

    def __init__(self, experiment, network, recipe, seed, quick=False, bases=None):
        super().__init__(experiment, network, recipe, seed, quick)
        weights = base_job(network, seed, "", quick, bases).path.with_suffix(".pt")
        self.model.load_state_dict(torch.load(weights, weights_only=True, map_location=self.device))
        freeze(self.model, recipe.frozen)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.Adam(trained, lr=recipe.peak)
        self.epochs = round(recipe.part * self.epochs)
        self.warmup = None

    def epoch(self, x, y):
        if self.recipe.warmup and self.warmup is None:
            steps = self.epochs * (len(x) // self.batch)
            self.warmup = WeightWarmup(self.penalty, max(1, round(self.recipe.warmup * steps)))
        super().epoch(x, y)

    def step(self, x, y):
        super().step(x, y)
        if self.warmup is not None:
            self.warmup.step()


def freeze(model, count):
    """Leave the first `count` convolutions and what lies before the next one as they are, running statistics too."""
    layers = list(model[1])
    convolutions = [place for place, layer in enumerate(layers) if isinstance(layer, nn.Conv2d)]
    for layer in layers[: convolutions[count]]:
        layer.eval().requires_grad_(False)
