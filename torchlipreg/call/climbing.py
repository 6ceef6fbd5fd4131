"""How pairs climb: the ascent rule that the settings name, and the objective that belongs to it."""

from __future__ import annotations

from torch import Tensor

from torchlipreg.call.region import Region
from torchlipreg.geometry.ascent import Objective, Rule
from torchlipreg.geometry.quotient import PairQuotient
from torchlipreg.geometry.rules import SGD, Adam, Nesterov, Power


def climbing(region: Region, q: PairQuotient, centre: Tensor) -> tuple[Rule, Objective]:
    """Return the rule, and what its pairs climb: q², or for power steps, which keep the distance, ‖f(x) − f(x′)‖.

    Args:
        region: Where pairs may go.
        q: The quotient.
        centre: Data points, shape (N, *), around which ptv's free pairs turn.

    Returns:
        A rule and an objective for :func:`torchlipreg.geometry.ascent.ascend`.
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
        return power, q.height
    step_size = float(settings.step_size or 0.0)  # filled in by the settings for these
    rules: dict[str | None, Rule] = {
        "sgd": SGD(step_size, settings.momentum),
        "nesterov": Nesterov(step_size),
        "adam": Adam(step_size),
    }
    return rules[settings.ascent], q.square
