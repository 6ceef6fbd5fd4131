"""Are two outputs the same, up to rounding? Each number at its own scale, so that masks of −1e9 hide nothing."""

from __future__ import annotations

import torch
from torch import Tensor

TOLERANCE = 1e-5  # relative to the largest output: float32 kernels differ by less, bfloat16 by far more
GAP = 1e3  # how far masks are above all else


def without_masks(y: Tensor) -> Tensor:
    """Return y, shape (N, *), with zeros for numbers that are far above all else, and for what is not finite.

    Logits of what is not to be chosen are often set to −1e9, the dtype's least number or −∞.
    """
    size = _finite_size(y)
    largest = size.amax()
    upper = size > largest / 2
    rest = torch.where(upper, 0, size).amax()
    masks = upper & (rest > 0) & (GAP * rest < largest)
    return torch.where(masks | ~y.isfinite(), 0, y)


def differs(y: Tensor, again: Tensor, tolerance: float) -> Tensor:
    """Say, for each number, whether it is another one.

    Args:
        y: Outputs, shape (N, *).
        again: Others of the same shape. Two NaN, or two infinities of the same sign, are the same.
        tolerance: Relative to the number, or to the largest of y that is no mask.

    Returns:
        Bool, shape (N, *).
    """
    scale = torch.maximum(_finite_size(y), without_masks(y).abs().amax())
    is_near = (y - again).abs() <= tolerance * scale
    return (y != again) & ~is_near & ~(y.isnan() & again.isnan())


def close(y: Tensor, again: Tensor, tolerance: float = TOLERANCE) -> bool:
    """Say whether two values at the same points are equal, but for rounding."""
    return y.shape == again.shape and not bool(differs(y, again, tolerance).any())


def _finite_size(y: Tensor) -> Tensor:
    return torch.where(y.isfinite(), y.detach().abs(), 0)
