"""The difference quotient q = ‖f(x) − f(x′)‖ / ‖x − x′‖ and the distance below which it is rounding noise."""

from collections.abc import Callable

import torch
from torch import Tensor

from torchlipreg.checks import check_norm, check_points
from torchlipreg.norms import batch_norm


def difference_quotient(
    f: Callable[[Tensor], Tensor], x: Tensor, x_prime: Tensor, *, input_norm: float = 2, output_norm: float = 2
) -> Tensor:
    """Return the difference quotient ‖f(xᵢ) − f(x′ᵢ)‖ / ‖xᵢ − x′ᵢ‖ of each pair.

    It never exceeds the Lipschitz constant of f in the same norms: a lower bound, not a certificate. ``f`` is
    called as it is: put a network into eval mode first, or use :func:`torchlipreg.lipschitz_lower_bound`.

    Args:
        f: Function from (N, *) to (N, *), rows independent of one another.
        x: First points, shape (N, *), floating.
        x_prime: Second points, the shape of ``x``.
        input_norm: 1, 2 or ``math.inf``: ‖x − x′‖.
        output_norm: 1, 2 or ``math.inf``: ‖f(x) − f(x′)‖.

    Returns:
        Quotients, shape (N,), differentiable. A coincident pair has quotient 0.

    Raises:
        TypeError: If ``x`` or ``x_prime`` is not a floating tensor.
        ValueError: If a norm is unknown or the shapes differ.

    References:
        Report, eq. (3).
    """
    check_norm("input_norm", input_norm)
    check_norm("output_norm", output_norm)
    check_points("x", x)
    check_points("x_prime", x_prime)
    if x.shape != x_prime.shape:
        raise ValueError(
            f"Expected argument `x_prime` to have the shape of `x`, {tuple(x.shape)}, but got {tuple(x_prime.shape)}."
        )
    floor = torch.finfo(x.dtype).tiny
    return quotient(f(x_prime) - f(x), batch_norm(x_prime - x, input_norm), floor, output_norm)


def quotient(difference: Tensor, distance: Tensor, floor: float, output_norm: float) -> Tensor:
    """Return ‖Δf‖ / max(‖Δx‖, floor): no division by zero, and never more than the true quotient.

    Args:
        difference: f(x′) − f(x), shape (N, *).
        distance: ‖x′ − x‖, shape (N,).
        floor: Smallest distance that counts.
        output_norm: 1, 2 or ``math.inf``.

    Returns:
        Quotients, shape (N,).
    """
    return batch_norm(difference, output_norm) / distance.clamp_min(floor)


def distance_floor(dtype: torch.dtype, scale: float) -> float:
    """Return the distance under which a quotient in ``dtype`` is cancellation noise.

    Rounding leaves an error of a few machine epsilons times ‖f(x)‖ in f(x) − f(x′); a distance of 1024 epsilons
    (1.2e-4 in float32), relative to ‖x‖, keeps the quotient's error well under one per cent. A model in half precision
    cannot have that: there a quarter of ‖x‖ counts as resolved, at an error of a few per cent.

    Args:
        dtype: In which f computes.
        scale: Typical ‖x‖ in the input norm; 0 counts as 1.

    Returns:
        The distance, in input units.
    """
    return min(1024 * torch.finfo(dtype).eps, 0.25) * (scale or 1.0)
