"""Time per training step relative to plain training."""

import math
import statistics
from functools import partial

from examples.experiments.common.clock import interleaved, quartiles
from examples.experiments.common.training import begin


def relative_step_times(experiment, network, recipes, data, quick):
    """For each recipe its settings and the quartiles of its time over plain training's in the same round."""
    steps_of_round, rounds = experiment.timing
    images = steps_of_round * experiment.batch
    parts = (part[:images].to(experiment.device).split(experiment.batch) for part in (data.train_x, data.train_y))
    batches = list(zip(*parts, strict=True))

    def steps(training):
        for i in range(steps_of_round):
            training.step(*batches[i % len(batches)])

    trainings = {name: begin(experiment, network, recipe, 0, quick) for name, recipe in recipes.items()}
    for training in trainings.values():
        if training.discrepancy is not None:  # at the weight that it ends with, not at zero
            training.penalty.weight, training.discrepancy = training.recipe.penalty["weight"], None
    runs = {name: partial(steps, training) for name, training in trainings.items()}
    interleaved(runs, experiment.device, 1, math.inf)  # warms up
    seconds = interleaved(runs, experiment.device, 3 if quick else rounds, math.inf)
    return {
        name: {
            "settings": recipes[name].settings(),
            "ms": round(1e3 * statistics.median(times) / steps_of_round, 3),
            "ratio": [round(q, 3) for q in quartiles([t / p for t, p in zip(times, seconds["plain"], strict=True)])],
        }
        for name, times in seconds.items()
    }
