"""How pairs climb: the ascent rule that the settings name, and the objective that belongs to it."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from torchlipreg.call.region import Region
from torchlipreg.call.state import Carried
from torchlipreg.geometry.ascent import Rule, ascend
from torchlipreg.geometry.quotient import PairQuotient
from torchlipreg.geometry.rules import SGD, Adam, Nesterov, Power


def ascent_rule(region: Region, centre: Tensor) -> Rule:
    """Return the rule that the settings name.

    Args:
        region: Where pairs may go.
        centre: Data points, shape (N, *), around which power steps turn ptv's free pairs.
    """
    settings = region.settings
    if settings.ascent == "power":
        around_data = region.projects and not region.x_stays
        return Power(
            settings.input_norm,
            anchored=region.x_stays,
            centre=centre if around_data else None,
            radius=region.resolution.radius or 0.0,
        )
    step_size = float(settings.step_size or 0.0)  # filled in by the settings for these
    if settings.ascent == "sgd":
        return SGD(step_size, settings.momentum)
    return Nesterov(step_size) if settings.ascent == "nesterov" else Adam(step_size)


def climb(carried: Carried, q: PairQuotient, rule: Rule, region: Region, centre: Tensor) -> Carried:
    """Return the pairs after ``ascent_steps`` steps up q²; power steps, which keep the distance, climb ‖f(x) − f(x′)‖.

    Args:
        carried: Pairs, shape (N, *), with the rule's memory.
        q: The quotient.
        rule: How to step.
        region: Where pairs may go: each step is brought back into it.
        centre: The data points of a local method, shape (N, *).

    Returns:
        The moved pairs, detached, with the rule's new memory.
    """
    moved = ascend(
        carried.pairs,
        carried.memory,
        rule,
        q.height if region.settings.ascent == "power" else q.square,
        steps=region.settings.ascent_steps,
        anchored=region.x_stays,
        project=partial(region.project, centre=centre),
    )
    return Carried(*moved, carried.side)
