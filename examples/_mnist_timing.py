"""Time per training step relative to plain training."""

import statistics
import time

from _mnist_training import BATCH, Training
from tqdm import tqdm

STEPS = 8  # of each recipe in a round: a multiple of every `interval`
ROUNDS = 25


def relative_step_times(network, recipes, data, quick):
    """For each recipe its settings and the quartiles of its time over plain training's in the same round.

    The recipes take turns in one process, so that a busy machine slows all of them alike.
    """
    trainings = {name: Training(network, recipe, 0, quick) for name, recipe in recipes.items()}
    x, y = data.train_x[: STEPS * BATCH], data.train_y[: STEPS * BATCH]
    batches = list(zip(x.split(BATCH), y.split(BATCH), strict=True))[:STEPS]
    seconds = {name: [] for name in trainings}
    for _ in tqdm(range(3 if quick else ROUNDS), desc=f"{network}, time per step", leave=False):
        for name, training in trainings.items():
            start = time.perf_counter()
            for i in range(STEPS):
                training.step(*batches[i % len(batches)])
            seconds[name].append(time.perf_counter() - start)
    plain = seconds["plain"][1:]  # the first round warms up
    return {
        name: {
            "settings": recipes[name].settings(),
            "ms": round(1e3 * statistics.median(times[1:]) / STEPS, 3),
            "ratio": [round(q, 3) for q in statistics.quantiles(a / b for a, b in zip(times[1:], plain, strict=True))],
        }
        for name, times in seconds.items()
    }
