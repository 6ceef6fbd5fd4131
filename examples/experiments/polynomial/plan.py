"""The trainings behind each picture, and what they show in numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from examples.experiments.polynomial.training import Fit, Run

FEW_PAIRS = {"method": "max", "num_pairs": 8, "weight": 0.1, "ascent": "nesterov"}  # so few that it matters where

Groups = dict[str, list[list[Run]]]  # name in the legend -> a list for each setting -> a run for each seed


def plan(quick: bool) -> dict[str, Groups]:
    """Return the runs behind each picture."""
    seeds = range(2) if quick else range(6)
    step_sizes = [1e-3, 1e-1, 1e1] if quick else [10.0**k for k in range(-4, 3)]
    weights = [1e-4, 1.0, 1e4] if quick else [10.0**k for k in range(-4, 5)]

    def runs(seeds: range, **settings: Any) -> list[Run]:
        return [Run(seed, steps=100 if quick else 300, **settings) for seed in seeds]

    return {
        "fits": {
            "plain training": [runs(seeds, weight=0.0)],
            "penalty max, λ = 0.03": [runs(seeds, method="max")],
            "penalty tv, λ = 0.03": [runs(seeds, method="tv")],
        },
        "ascent_steps": {
            "few: 1 ascent step of size 0.0001": [runs(seeds[:4], **FEW_PAIRS, step_size=1e-4)],
            "many: 10 ascent steps of size 0.1": [runs(seeds[:4], **FEW_PAIRS, step_size=0.1, ascent_steps=10)],
        },
        "ascents": {
            name: [runs(seeds[:4], ascent=name, step_size=size) for size in step_sizes]
            for name in ("sgd", "nesterov", "adam")
        }
        | {"power": [runs(seeds[:4], ascent="power")]},
        "weights": {
            name: [runs(seeds[:3], method=name, weight=weight) for weight in weights] for name in ("max", "tv")
        },
    }


def summarise(results: dict[str, dict[str, list[list[Fit]]]]) -> Iterator[str]:
    """Say in numbers what the pictures show: mean ± standard deviation over the seeds."""

    def spread(fits: list[Fit], value: Callable[[Fit], float]) -> str:
        values = [value(fit) for fit in fits]
        return f"{np.mean(values):.3f} ± {np.std(values):.3f}"

    if "fits" in results:
        yield "\nMissing data: root mean square distance from the polynomial"
        for name, (fits,) in results["fits"].items():
            gap, data = (
                spread(fits, lambda fit, part=part: getattr(fit, part)) for part in ("gap_error", "data_error")
            )
            yield f"  {name:36} where data is missing {gap}   elsewhere {data}"
    if "ascent_steps" in results:
        yield "Ascent steps: what the penalty sees of the steepest slope, and the slope at the ends of the domain"
        for name, (fits,) in results["ascent_steps"].items():
            seen, true = spread(fits, lambda fit: fit.estimate), spread(fits, lambda fit: fit.steepest)
            yield f"  {name:36} sees {seen} of {true}   at the ends {spread(fits, lambda fit: fit.end_slope)}"
    if "ascents" in results:
        yield "Ascents: accuracy on the polynomial, from the worst step size to the best"
        for name, columns in results["ascents"].items():
            means = [np.mean([fit.true_accuracy for fit in fits]) for fits in columns]
            diverged = sum(not np.isfinite(fit.loss) for fits in columns for fit in fits)
            yield f"  {name:36} {min(means):.3f} … {max(means):.3f}   diverged: {diverged}"
    if "weights" in results:
        yield "Weight 10⁴: largest distance of the network from the mean of the data"
        for name, columns in results["weights"].items():
            yield f"  {name:36} {spread(columns[-1], lambda fit: fit.distance_from_mean)}"
