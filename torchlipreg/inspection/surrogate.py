"""Is the derivative that torch takes that of the values? Not past detached parts and straight-through estimators."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from torchlipreg.geometry.derivative import directional_derivative, pull_back
from torchlipreg.geometry.norms import as_rows, per_row, rescale, row_norm
from torchlipreg.geometry.pairs import at_least_one, finite_copy
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

InFloat64 = Callable[[], AbstractContextManager[FixedFunction]]


def has_surrogate(
    in_float64: InFloat64,
    x: Tensor,
    side: SideRows | None = None,
    *,
    bounds: tuple[float, float] | None = None,
    reverse: bool = False,
) -> bool:
    """Say whether derivatives miss what central differences of the values tend to, near some data points.

    In one direction, in which a mean and a scale of the input move as well.

    Args:
        in_float64: Holds the model as a fixed function that computes in float64.
        x: Data points, raw, shape (N, *).
        side: What else the model takes, with a row for each of them.
        bounds: Within which the model may be evaluated; None for the range of x.
        reverse: Look at products with the transposed Jacobian, by a backward, and not at those of forward mode.

    Returns:
        Whether it is so; False for a model that refuses float64, or rounds to less inside, which is taken on trust.

    Raises:
        OutOfMemoryError: If its copy in float64 does not fit.
    """
    rows, rng = slice(ROWS), torch.Generator(x.device).manual_seed(0)
    x = finite_copy(at_least_one(x[rows]).detach())
    try:
        with torch.no_grad(), forked(x.device), in_float64() as f:
            f = f.with_rows(_in_float64(take_rows(side or {}, rows)))
            x, v = _place(x.double(), bounds, rng)
            observer = Observer()
            with observing(f, observer):
                y = f(x)
            if observer.dtype is not None:
                return False
            coarse, fine = ((f(x + h * v) - f(x - h * v)) / (2 * h) for h in STEPS)
            slope, fine, coarse = _measured(f, x, v, y, fine, coarse, rng, reverse=reverse)
            rounding = torch.finfo(y.dtype).eps * row_norm(y, 2) / STEPS[-1]
            size = torch.maximum(row_norm(slope, 2), row_norm(fine, 2))
            settled = torch.maximum(row_norm(coarse - fine, 2), rounding) <= SETTLED * size
            off = row_norm(slope - fine, 2) > OFF * size
            return int((settled & off).sum()) * FEW >= len(x)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # of whatever kind, in float64: in its own precision it has been seen to run
        return False


def _place(x: Tensor, bounds: tuple[float, float] | None, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return points beside x that stay within the bounds after a step, and the direction of a step of length ‖x‖."""
    size = row_norm(x, 2)
    size = torch.where(size > 0, size, 1.0)
    aside, v = (rescale(torch.empty_like(x).normal_(generator=rng), size, 2) for _ in range(2))
    v = rescale(v + x + rescale(torch.ones_like(x), size, 2), size, 2)
    low, high = bounds or map(float, x.aminmax())
    if low == high:  # nothing says where else it may be evaluated
        return x + ASIDE * aside, v
    inward = torch.where(x < (low + high) / 2, aside.abs(), -aside.abs())
    step = torch.minimum(STEPS[0] * v.abs(), x.new_tensor((high - low) / 4))
    return (x + ASIDE * inward).clamp(low + step, high - step), v


def _measured(
    f: FixedFunction,
    x: Tensor,
    v: Tensor,
    y: Tensor,
    fine: Tensor,
    coarse: Tensor,
    rng: torch.Generator,
    *,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return J v and what the differences say of it: by forward mode, or the part along one direction by a backward."""
    if not reverse:
        return directional_derivative(f, x, v), fine, coarse
    random = rescale(torch.empty_like(y).normal_(generator=rng), 1.0, 2)
    u = torch.where(per_row(row_norm(fine, 2) > 0, fine), rescale(fine, 1.0, 2), random)
    products = (pull_back(f, x)[1](u) * v, u * fine, u * coarse)
    slope, fine, coarse = (as_rows(product).sum(1, keepdim=True) for product in products)
    return slope, fine, coarse


def _in_float64(side: SideRows) -> SideRows:
    return {name: value.double() if value.is_floating_point() else value for name, value in side.items()}
