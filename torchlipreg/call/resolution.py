"""The resolution of a call: ε, and the distance that the dtype resolves, on which the first batch decides."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from torchlipreg.call.settings import Settings
from torchlipreg.call.state import PenaltyState
from torchlipreg.distributed import largest_or_raise
from torchlipreg.geometry.norms import row_norm
from torchlipreg.geometry.quotient import Resolution, distance_floor
from torchlipreg.inspection.seen import Seen
from torchlipreg.tensor_checks import check_values

NEAR = 4  # times the floor: under such a mean distance many pairs are closer than the floor
ANOTHER = 8  # times the floor, or more: another precision; less is the scale of another batch


def resolution_of(settings: Settings, state: PenaltyState, seen: Seen, points: Tensor) -> Resolution:
    """Return ε and the floor; the first batch's values are looked at, and may be refused.

    Args:
        settings: Of the penalty.
        state: Of the penalty.
        seen: What was seen of the model.
        points: Shape (N, *), in raw units.

    Raises:
        ValueError: If the model was refused, or the first batch is.
    """
    error = None if seen.error is None else ValueError(seen.error)
    if state.floor is None:
        return _first(settings, state, seen.dtype, points, error)
    if error is not None:
        raise error
    resolution = Resolution(state.radius, state.floor)
    if not (settings.one_sided and resolution.limit):
        return resolution
    state.warn_once(
        f"`radius`={state.radius:g} has fallen under what the model's dtype resolves for such inputs, "
        f"{state.floor:.2g}, where with `one_sided`=True it is held: a derivative has no f(x) to hold as a target.",
        key="held",
    )
    return Resolution(state.floor, state.floor)


def _first(
    settings: Settings, state: PenaltyState, dtype: torch.dtype, points: Tensor, error: Exception | None
) -> Resolution:
    """Check the values of the first batch. Collective: all ranks look at theirs, and go by the largest."""
    radius = state.radius
    try:
        check_values("x", points, settings.bounds)
        check_first_batch(settings, radius, points)
    except ValueError as e:
        error = e
    scale = largest_or_raise(_mean_norm(settings, points), error)
    floor = distance_floor(dtype, scale)
    if settings.one_sided and Resolution(radius, floor).limit:
        raise ValueError(
            f"Expected `radius` with `one_sided`=True to be at least what {dtype} resolves for inputs of norm "
            f"{scale:.3g}, {floor:.2g}, but got {radius:g}: a derivative has no f(x) to hold as a target."
        )
    if radius is not None and 0 < radius < floor:
        state.warn_once(
            f"`radius`={radius:g} is less than {dtype} resolves for inputs of norm {scale:.3g} ({floor:.2g}): "
            "the limit ε → 0, the directional derivative, is computed instead. Pass radius=0 to ask for it."
        )
    if radius is None and 0 < (apart := _distance(settings, points)) < NEAR * floor:
        state.warn_once(
            f"Points of the first batch lie {apart:.2g} apart, and {dtype} resolves {floor:.2g} for inputs of norm "
            f"{scale:.3g}: quotients of closer pairs are held down, and pairs drawn anew. Take a constant off the "
            "inputs; with `normalization`, (0, std) measures them without their mean. Or train in float64."
        )
    return Resolution(radius, floor)


def look_at_precision(settings: Settings, state: PenaltyState, dtype: torch.dtype, points: Tensor) -> None:
    """Warn of a later model that computes in less precision than the first, by which ε was judged.

    Args:
        settings: Of the penalty.
        state: Of the penalty.
        dtype: In which this model computes.
        points: Shape (N, *), in raw units.
    """
    if state.floor is None:
        return
    needed = distance_floor(dtype, float(_mean_norm(settings, points)))
    if needed > ANOTHER * state.floor and (state.radius is None or state.floor <= state.radius < needed):
        state.warn_once(
            f"This model computes in {dtype}, which resolves distances from {needed:.2g} on, and this penalty met "
            f"another first, or resumed from another, which resolves {state.floor:.2g}: quotients of closer pairs are "
            "rounding errors. Give models of another precision a penalty of their own."
        )


def _mean_norm(settings: Settings, points: Tensor) -> Tensor:
    return row_norm(points, settings.input_norm).sum() / max(1, len(points))


def _distance(settings: Settings, points: Tensor) -> float:
    """Return the mean distance of a point from the next one in the batch, infinity for less than two."""
    return float(row_norm(points - points.roll(1, 0), settings.input_norm).mean()) if len(points) > 1 else math.inf


def points_needed(radius: float | None) -> int:
    """Return how many data points a pair starts from."""
    return 2 if radius is None else 1


def check_first_batch(settings: Settings, radius: float | None, x: Tensor) -> None:
    """Raise ValueError if X_lip is to start from a batch with too few points."""
    if settings.persistent and len(x) < points_needed(radius):
        raise ValueError(
            f"Expected the first `x`, from which the pairs of method {settings.method!r} start, to hold at least "
            f"{points_needed(radius)} data points with `radius`={radius}, but got {len(x)}. Give a larger batch"
            + (", or a `radius`." if radius is None else ".")
        )
