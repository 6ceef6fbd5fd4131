"""One training run of an experiment, step by step."""

from collections import deque

import torch

from examples.experiments.common.rivals import plain
from torchlipreg import DiscrepancyWeight, LipschitzPenalty

RUNNING = 25  # steps between those of the discrepancy principle, which is told their accuracy


class Training:
    def __init__(self, experiment, network, recipe, seed, quick=False):
        torch.manual_seed(seed)
        self.recipe, self.batch = recipe, experiment.batch
        self.model = experiment.build(network, quick)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=experiment.learning_rate)
        self.batches = torch.Generator().manual_seed(seed)  # the same for every recipe, whatever it draws itself
        self.penalty = self.discrepancy = None
        if recipe.penalty is not None:
            self.penalty = LipschitzPenalty(**{"seed": seed} | recipe.penalty)
        if recipe.discrepancy is not None:
            self.discrepancy = DiscrepancyWeight(self.penalty, **recipe.discrepancy)
        self.epochs = experiment.number_of_epochs(network, quick)
        self.hits = deque(maxlen=RUNNING)
        self.steps = 0
        self.rows = None  # places of the present batch among the training images

    def step(self, x, y):
        self.optimizer.zero_grad()
        self._loss(x, y).backward()
        self.optimizer.step()
        self.steps += 1
        if self.discrepancy is not None and self.steps % RUNNING == 0:
            self.discrepancy.step(sum(self.hits) / len(self.hits))

    def _loss(self, x, y):
        if self.penalty is None:
            return self.recipe.loss(self.model, x, y, **self.recipe.arguments)
        if self.recipe.loss is not plain:  # its outputs are not those of the clean images
            return self.recipe.loss(self.model, x, y, **self.recipe.arguments) + self.penalty(self.model, x)
        outputs = self.model(x)
        if self.discrepancy is not None:
            self.hits.append((outputs.argmax(1) == y).float().mean().item())
        loss = torch.nn.functional.cross_entropy(outputs, y)
        return loss + self.penalty(self.model, x, outputs)

    def epoch(self, x, y):
        rows = torch.randperm(len(x), generator=self.batches)
        batches = rows[: len(x) - len(x) % self.batch].split(self.batch)
        gamma = self.recipe.weight_fall ** (1 / (self.epochs * len(batches)))
        for batch in batches:
            self.rows = batch
            self.step(x[batch], y[batch])
            if gamma != 1:
                self.penalty.weight *= gamma


def begin(experiment, *arguments):
    return (experiment.training or Training)(experiment, *arguments)


def train(experiment, network, recipe, seed, data, quick):
    """A trained model in eval mode whose parameters want no gradient, as evaluations like it."""
    training = begin(experiment, network, recipe, seed, quick)
    for _ in range(training.epochs):
        training.epoch(data.train_x, data.train_y)
    return training.model.eval().requires_grad_(False)
