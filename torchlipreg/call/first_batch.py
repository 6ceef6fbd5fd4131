"""The first batch, whose values alone are looked at: may pairs start from it, and how fine are they?"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from torchlipreg.call.settings import Settings
from torchlipreg.distributed import largest_or_raise
from torchlipreg.geometry.norms import row_norm
from torchlipreg.geometry.quotient import Resolution, distance_floor
from torchlipreg.tensor_checks import check_values

ANOTHER = 8  # times the floor, or more: another precision; less is the scale of another batch


def first_look(
    settings: Settings,
    radius: float | None,
    dtype: torch.dtype,
    points: Tensor,
    error: Exception | None,
    warn: Callable[[str], None],
) -> Resolution:
    """Check the values of the first batch, and return ε with the smallest distance that the dtype resolves there.

    Collective: all ranks look at theirs, and go by the largest.

    Args:
        settings: Of the penalty.
        radius: ε as the user has it; None for pairs of different data points.
        dtype: In which the model computes.
        points: Shape (N, *), in raw units.
        error: Of this rank, found before; None without.
        warn: Told if ε is not resolved.

    Returns:
        The resolution.

    Raises:
        ValueError: If the values are not finite or outside the bounds, or the batch is too small.
    """
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
        warn(
            f"`radius`={radius:g} is less than {dtype} resolves for inputs of norm {scale:.3g} ({floor:.2g}): "
            "the limit ε → 0, the directional derivative, is computed instead. Pass radius=0 to ask for it."
        )
    return Resolution(radius, floor)


def look_at_precision(
    settings: Settings,
    radius: float | None,
    floor: float,
    dtype: torch.dtype,
    points: Tensor,
    warn: Callable[[str], None],
) -> None:
    """Warn of a later model that computes in less precision than the first, by which ε was judged.

    Args:
        settings: Of the penalty.
        radius: ε as the user has it; None for pairs of different data points.
        floor: What the first model resolves.
        dtype: In which this one computes.
        points: Shape (N, *), in raw units.
        warn: Told if ε lies between.
    """
    needed = distance_floor(dtype, float(_mean_norm(settings, points)))
    if needed > ANOTHER * floor and (radius is None or floor <= radius < needed):
        warn(
            f"This model computes in {dtype}, which resolves distances from {needed:.2g} on, and this penalty met "
            f"another first, or resumed from another, which resolves {floor:.2g}: quotients of closer pairs are "
            "rounding errors. Give models of another precision a penalty of their own."
        )


def _mean_norm(settings: Settings, points: Tensor) -> Tensor:
    return row_norm(points, settings.input_norm).sum() / max(1, len(points))


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
