"""How pairs climb: the ascent rule that the settings name, what it climbs, and its start where ε meets the limit."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from torchlipreg.call.region import Region
from torchlipreg.call.settings import Settings
from torchlipreg.call.state import Carried, PenaltyState
from torchlipreg.geometry.ascent import Rule, ascend
from torchlipreg.geometry.norms import rescale
from torchlipreg.geometry.pairs import PairSet
from torchlipreg.geometry.quotient import PairQuotient, Resolution
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


def set_radius(state: PenaltyState, settings: Settings, radius: float | None) -> None:
    """Set ε; where it comes to the limit ε → 0 or leaves it, make directions of the pairs, or pairs of those.

    The ascent starts anew from them: a rule's memory is of the lengths that they had.

    Args:
        state: Of the penalty.
        settings: Of the penalty.
        radius: ε from now on; with None pairs are drawn anew in the next call.
    """
    before, state.radius = state.radius, radius
    if state.last is None or state.floor is None or settings.one_sided:  # which is never in the limit
        return
    now = Resolution(radius, state.floor)
    if Resolution(before, state.floor).limit == now.limit:
        return
    length = now.unit if now.limit else 1.0 if radius is None else radius
    x, x_prime = state.last.pairs
    pairs = PairSet(x, x + rescale(x_prime - x, length, settings.input_norm))
    region = Region(settings, now)
    if not now.limit:
        pairs = region.inside(pairs)
    memory = ascent_rule(region, x).start(pairs)
    state.replace(Carried(pairs, memory, state.last.side), redraw=radius is None)
