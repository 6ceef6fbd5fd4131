"""How pairs climb: the ascent rule that the settings name, and the objective that belongs to it."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from torch import Tensor

from torchlipreg.call.region import Region
from torchlipreg.call.state import Carried
from torchlipreg.geometry.ascent import Objective, Rule, ascend
from torchlipreg.geometry.quotient import PairQuotient
from torchlipreg.geometry.rules import SGD, Adam, Nesterov, Power


class Climb(NamedTuple):
    """The ascent of one call.

    Attributes:
        region: Where pairs may go.
        centre: The data points of a local method, shape (N, *).
        rule: How to step.
        objective: What each pair climbs.
    """

    region: Region
    centre: Tensor
    rule: Rule
    objective: Objective

    def __call__(self, carried: Carried) -> Carried:
        """Return the pairs after ``ascent_steps`` steps uphill, each brought back into the region."""
        pairs, memory = ascend(
            carried.pairs,
            carried.memory,
            self.rule,
            self.objective,
            steps=self.region.settings.ascent_steps,
            anchored=self.region.x_stays,
            project=partial(self.region.project, centre=self.centre),
        )
        return Carried(pairs, memory, carried.side)


def climbing(region: Region, q: PairQuotient, centre: Tensor) -> Climb:
    """Return the ascent by the rule that the settings name.

    Pairs climb q², or with power steps, which keep the distance, ‖f(x) − f(x′)‖.

    Args:
        region: Where pairs may go.
        q: The quotient.
        centre: Data points, shape (N, *), around which ptv's free pairs turn.
    """
    settings = region.settings
    if settings.ascent == "power":
        around_data = region.projects and not region.x_stays
        power = Power(
            settings.input_norm,
            anchored=region.x_stays,
            centre=centre if around_data else None,
            radius=region.resolution.radius or 0.0,
        )
        return Climb(region, centre, power, q.height)
    step_size = float(settings.step_size or 0.0)  # filled in by the settings for these
    rules: dict[str | None, Rule] = {
        "sgd": SGD(step_size, settings.momentum),
        "nesterov": Nesterov(step_size),
        "adam": Adam(step_size),
    }
    return Climb(region, centre, rules[settings.ascent], q.square)
