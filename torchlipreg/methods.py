"""What the four methods differ in: how pairs are born, where they may go, and how they step.

Throughout, ``radius == 0`` means the limit ε → 0, in which a pair is a point and a direction of unit length.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torchlipreg.ascent import Adam, Momentum, Nesterov, Power, Rule, State, on_sphere, where_state
from torchlipreg.checks import check_row_numbers
from torchlipreg.norms import rescale
from torchlipreg.pairs import PairSet, add_noise, draw_from_data, draw_in_ball, draw_points
from torchlipreg.settings import Settings


def choose_points(settings: Settings, x: Tensor, outputs: Any, generator: torch.Generator) -> Tensor | None:
    """Draw or choose which rows of the batch a local method uses; None for all of them.

    Args:
        settings: Of the penalty.
        x: The batch, shape (N, *).
        outputs: What the training loop's ``model(x)`` returned, or None.
        generator: The only source of randomness.

    Returns:
        Row numbers, shape (num_pairs,), or None.

    Raises:
        TypeError: If ``settings.choose`` returns no row numbers.
    """
    if settings.persistent or settings.num_pairs is None or settings.num_pairs >= len(x):
        return None
    if settings.choose is None:
        return torch.randperm(len(x), generator=generator, device=x.device)[: settings.num_pairs]
    return check_row_numbers(settings.choose(outputs, settings.num_pairs))


def draw_pairs(
    settings: Settings, x: Tensor, radius: float | None, generator: torch.Generator, num_pairs: int | None = None
) -> PairSet:
    """Draw fresh pairs: X_lip's start in Algorithm 1 (persistent methods), or around each data point (local ones).

    Args:
        settings: Of the penalty.
        x: Data points, shape (N, *).
        radius: ε; None for pairs of different data points.
        generator: The only source of randomness.
        num_pairs: max, sum: how many, if not what the settings say (another number of ranks has saved them).

    Returns:
        ``num_pairs`` pairs for max and sum, N for tv and ptv.
    """
    limit = radius == 0
    count = num_pairs or settings.num_pairs or 0
    if radius is None:
        pairs = draw_from_data(x, count, generator)
    else:
        centre = draw_points(x, count, generator) if settings.persistent else x
        sphere = limit or (settings.method == "ptv" and settings.anchored)
        pairs = draw_in_ball(centre, radius or 1.0, settings.input_norm, generator, on_sphere=sphere)
    if settings.noise and not limit:
        x_prime = add_noise(pairs.x_prime, settings.noise, generator)
        pairs = PairSet(pairs.x if settings.fixed_x else add_noise(pairs.x, settings.noise, generator), x_prime)
    return pairs if limit else pairs.clamp(settings.bounds, anchored=settings.fixed_x)


def points_needed(radius: float | None) -> int:
    """Return how many data points a pair starts from."""
    return 2 if radius is None else 1


def check_size(settings: Settings, radius: float | None, batch: Tensor) -> None:
    """Raise ValueError if X_lip is to start from a batch with too few points."""
    if settings.persistent and len(batch) < points_needed(radius):
        raise ValueError(
            f"Expected the first `x`, from which the pairs of method {settings.method!r} start, to hold at least "
            f"{points_needed(radius)} data points with `radius`={radius}, but got {len(batch)}. Give a larger batch"
            + (", or a `radius`." if radius is None else ".")
        )


def start(
    settings: Settings,
    known: tuple[PairSet, State] | None,
    stuck: Tensor | None,
    batch: Tensor,
    rule: Rule,
    radius: float | None,
    generator: torch.Generator,
) -> tuple[PairSet, State]:
    """Return the pairs before the ascent: fresh ones, or X_lip with its stuck pairs drawn anew.

    Args:
        settings: Of the penalty.
        known: The last call's pairs and ascent state, None in the first call.
        stuck: Which of them to draw anew, shape (num_pairs,), bool.
        batch: Data points, shape (N, *). Fresh pairs of points that are not finite are not used.
        rule: The ascent rule, which gives fresh pairs their state.
        radius: ε; None for pairs of different data points.
        generator: The only source of randomness.

    Returns:
        Pairs and the rule's state.

    Raises:
        ValueError: If the batch is too small for X_lip to start from it.
    """
    if not settings.persistent or known is None:
        check_size(settings, radius, batch)
        pairs = draw_pairs(settings, batch, radius, generator)
        return pairs, rule.start(pairs)
    pairs, state = known
    if stuck is None or len(batch) < points_needed(radius):
        return known
    fresh = draw_pairs(settings, batch, radius, generator, num_pairs=len(stuck))
    keep = ~stuck.to(batch.device) | ~fresh.isfinite()
    return pairs.where(keep, fresh), where_state(keep, state, rule.start(fresh))


def is_stuck(pairs: PairSet, q: Tensor, floor: float, p: float) -> Tensor:
    """Say which pairs ascent cannot move: on a level set f(x) = f(x′) (Property 1), collapsed, or not finite.

    Rounding leaves a quotient of a few machine epsilons, relative to the largest, on a level set.

    Args:
        pairs: Pairs, shape (N, *).
        q: Their quotients, shape (N,).
        floor: Smallest distance that counts; 0 in the limit ε → 0, in which x′ − x is a mere direction.
        p: The input norm.

    Returns:
        Shape (N,), bool.
    """
    finite = q.isfinite()
    noise = 32 * torch.finfo(q.dtype).eps * torch.where(finite, q, 0).amax()
    return (q <= noise) | (pairs.distance(p) < floor) | ~finite


def projection(settings: Settings, centre: Tensor, radius: float | None) -> Callable[[PairSet], PairSet]:
    """Return the map that brings moved pairs back: to the ε-sphere (ptv), to unit directions (limit), to the bounds.

    Args:
        settings: Of the penalty.
        centre: The data points of a local method, shape (N, *).
        radius: ε.

    Returns:
        A function from pairs to pairs, idempotent.
    """
    p = settings.input_norm

    def project(pairs: PairSet) -> PairSet:
        if radius == 0:
            x = pairs.x if settings.bounds is None or settings.fixed_x else pairs.x.clamp(*settings.bounds)
            return PairSet(x, x + rescale(pairs.x_prime - pairs.x, 1.0, p))
        if settings.method == "ptv" and radius is not None:
            moved = on_sphere(pairs, centre, radius, p)
            pairs = PairSet(pairs.x if settings.fixed_x else moved.x, moved.x_prime)
        return pairs.clamp(settings.bounds, anchored=settings.fixed_x)

    return project


def ascent_rule(settings: Settings, centre: Tensor, radius: float | None) -> Rule:
    """Return the ascent rule that the settings name.

    Args:
        settings: Of the penalty.
        centre: The data points of a local method, shape (N, *).
        radius: ε.

    Returns:
        The rule.
    """
    step_size = settings.step_size or 0.0
    if settings.ascent == "sgd":
        return Momentum(step_size, settings.momentum)
    if settings.ascent == "nesterov":
        return Nesterov(step_size)
    if settings.ascent == "adam":
        return Adam(step_size)
    around_data = settings.method == "ptv" and not settings.anchored and bool(radius)
    return Power(
        settings.input_norm,
        anchored=settings.fixed_x or radius == 0,
        centre=centre if around_data else None,
        radius=radius or 0.0,
    )
