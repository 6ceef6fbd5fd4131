"""Is the derivative that torch takes that of the values? Not past detached parts and straight-through estimators."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from torchlipreg.geometry.derivative import directional_derivative
from torchlipreg.geometry.norms import rescale, row_norm
from torchlipreg.inspection.operations import Observer, observing
from torchlipreg.model.function import FixedFunction
from torchlipreg.model.internals.randomness import forked
from torchlipreg.model.parts.side import SideRows, take_rows

ASIDE = 1e-3  # of the size of x: how far from it to look, lest units are at their kinks and maxima tied
STEPS = (1e-5, 1e-6)  # of the size of x, of two central differences
SETTLED = 1e-3  # relative: two differences that agree so well are near their limit
OFF = 0.02  # relative: a derivative that is off by more is another one
ROWS = 32  # points to look at
FEW = 4  # kinks put some rows off: one in so many must be


def has_surrogate(
    in_float64: Callable[[], AbstractContextManager[FixedFunction]], x: Tensor, side: SideRows | None = None
) -> bool:
    """Say whether directional derivatives miss what central differences tend to, near some data points.

    Args:
        in_float64: Holds the model as a fixed function that computes in float64.
        x: Data points, raw, shape (N, *).
        side: What else the model takes, with a row for each of them.

    Returns:
        False also where it cannot be told: a model that refuses float64, or rounds to less inside.
    """
    x = x[:ROWS].nan_to_num(0.0, 0.0, 0.0).detach()
    rng = torch.Generator(x.device).manual_seed(0)
    with contextlib.suppress(Exception), torch.no_grad(), forked(x.device), in_float64() as f:
        f, x = f.with_rows(_in_float64(take_rows(side or {}, slice(ROWS)))), x.double()
        size = row_norm(x, 2)
        size = torch.where(size > 0, size, 1.0)
        aside, v = (rescale(torch.empty_like(x).normal_(generator=rng), size, 2) for _ in range(2))
        x, observer = x + ASIDE * aside, Observer()
        with observing(f, observer):
            y = f(x)
        if observer.dtype is None:
            slope = directional_derivative(f, x, v)
            coarse, fine = ((f(x + h * v) - f(x - h * v)) / (2 * h) for h in STEPS)
            rounding = torch.finfo(y.dtype).eps * row_norm(y, 2) / STEPS[-1]
            size = torch.maximum(row_norm(slope, 2), row_norm(fine, 2))
            settled = torch.maximum(row_norm(coarse - fine, 2), rounding) <= SETTLED * size
            off = row_norm(slope - fine, 2) > OFF * size
            return int((settled & off).sum()) * FEW >= max(1, len(x))
    return False


def _in_float64(side: SideRows) -> SideRows:
    return {name: value.double() if value.is_floating_point() else value for name, value in side.items()}
