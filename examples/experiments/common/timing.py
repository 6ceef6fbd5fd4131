"""Time per training step relative to plain training."""

import math
import statistics
from functools import partial

from examples.experiments.common.clock import interleaved, quartiles
from examples.experiments.common.training import Training

STEPS = 8  # of each recipe in a round: a multiple of every `interval`
ROUNDS = 40


def relative_step_times(experiment, network, recipes, data, quick):
    """For each recipe its settings and the quartiles of its time over plain training's in the same round."""
    images = STEPS * experiment.batch
    parts = (part[:images].split(experiment.batch) for part in (data.train_x, data.train_y))
    batches = list(zip(*parts, strict=True))

    def steps(training):
        for i in range(STEPS):
            training.step(*batches[i % len(batches)])

    trainings = {name: Training(experiment, network, recipe, 0, quick) for name, recipe in recipes.items()}
    for training in trainings.values():
        if training.discrepancy is not None:  # at the weight that it ends with, not at zero
            training.penalty.weight, training.discrepancy = training.recipe.penalty["weight"], None
    runs = {name: partial(steps, training) for name, training in trainings.items()}
    interleaved(runs, "cpu", 1, math.inf)  # warms up
    seconds = interleaved(runs, "cpu", 3 if quick else ROUNDS, math.inf)
    return {
        name: {
            "settings": recipes[name].settings(),
            "ms": round(1e3 * statistics.median(times) / STEPS, 3),
            "ratio": [round(q, 3) for q in quartiles([t / p for t, p in zip(times, seconds["plain"], strict=True)])],
        }
        for name, times in seconds.items()
    }
