"""A training on natural images: flips and shifts, one cycle of the learning rate, on any device."""

import inspect

import torch
import torch.nn.functional as F
from torch.optim.lr_scheduler import OneCycleLR

from examples.experiments.common.fast import Memory
from examples.experiments.common.training import Training

SHIFT = 2  # pixels, in each direction


class ImageTraining(Training):
    """Adam with one cycle up to the experiment's learning rate; bfloat16 autocast on a GPU."""

    def __init__(self, experiment, network, recipe, seed, quick=False):
        super().__init__(experiment, network, recipe, seed, quick)
        self.device = experiment.device
        self.model.to(self.device)
        self.schedule = None
        self.memory = Memory() if "memory" in inspect.signature(recipe.loss).parameters else None

    def epoch(self, x, y):
        if self.schedule is None:
            peak, steps = self.optimizer.defaults["lr"], self.epochs * (len(x) // self.batch)
            self.schedule = OneCycleLR(self.optimizer, peak, total_steps=steps)
        super().epoch(x, y)

    def step(self, x, y):
        if self.memory is not None:
            self.memory.rows = (torch.arange(len(x)) if self.rows is None else self.rows).to(x.device)
        super().step(augmented(x, self.batches), y)
        if self.schedule is not None:
            self.schedule.step()

    def _loss(self, x, y):
        with torch.autocast(self.device, torch.bfloat16, enabled=self.device != "cpu"):
            if self.memory is None:
                return super()._loss(x, y)
            return self.recipe.loss(self.model, x, y, memory=self.memory, **self.recipe.arguments)


def augmented(x, generator, shift=SHIFT):
    """Each image mirrored or not, and shifted by up to `shift` pixels, its edge repeated."""
    n, _, height, width = x.shape
    padded = F.pad(x, [shift] * 4, mode="replicate").unfold(2, height, 1).unfold(3, width, 1)
    down, right = torch.randint(2 * shift + 1, (2, n), generator=generator).to(x.device)
    moved = padded[torch.arange(n, device=x.device), :, down, right]
    mirrored = (torch.rand(n, generator=generator) < 0.5).to(x.device)
    return torch.where(mirrored.view(-1, 1, 1, 1), moved.flip(3), moved)
