"""ℓ1, ℓ2 and ℓ∞ norms of a batch: value, dual exponent, steepest direction, rescaling, sampling.

Every function reads a tensor of shape (N, *) as N vectors: norms run over everything but the batch axis.
"""

import math

import torch
from torch import Tensor

NORMS = (1, 2, math.inf)


def row_norm(v: Tensor, p: float) -> Tensor:
    """Return ‖vᵢ‖ₚ of each row.

    Args:
        v: Vectors, shape (N, *).
        p: 1, 2 or ``math.inf``.

    Returns:
        Norms, shape (N,). The gradient at a zero row is zero, never NaN.
    """
    vectors = as_rows(v)
    if p == 2:
        norms: Tensor = torch.linalg.vector_norm(vectors, 2, dim=1)
        return norms
    size = vectors.abs()  # vector_norm takes 6 (ℓ1) and 15 (ℓ∞) times as long on a CPU: it is not vectorised there
    return size.sum(1) if p == 1 else size.amax(1)


def scaled_norm(v: Tensor, p: float) -> Tensor:
    """Return :func:`row_norm` without vanishing or overflowing squares, as those of 1e-25 and 1e25 in float32.

    In the dtype of v: some devices have no float64.
    """
    if p != 2 or v.numel() == 0:
        return row_norm(v, p)
    largest = row_norm(v, math.inf).clamp_min(torch.finfo(v.dtype).tiny)
    return torch.where(largest == math.inf, largest, largest * row_norm(v / per_row(largest, v), 2))


def dual_exponent(p: float) -> float:
    """Return q with 1/p + 1/q = 1: the norm in which a gradient is measured when steps are measured in ℓp."""
    return {1: math.inf, 2: 2, math.inf: 1}[p]


def steepest_direction(gradient: Tensor, p: float) -> Tensor:
    """Return the unit vector of ℓp along which a linear function grows fastest: argmax ⟨g, d⟩ over ‖d‖ₚ = 1.

    It is g/‖g‖₂ for ℓ2, sign(g) for ℓ∞ and the signed largest coordinate for ℓ1.

    Args:
        gradient: Gradients, shape (N, *).
        p: 1, 2 or ``math.inf``.

    Returns:
        Directions, shape (N, *). A row whose gradient is zero has no direction and stays zero.

    References:
        S. Boyd, L. Vandenberghe, *Convex Optimization*, section 9.4 (steepest descent in a norm).
    """
    if p == math.inf:
        return gradient.sign()
    if p == 2:
        return rescale(gradient, 1.0, 2)
    flat = as_rows(gradient)
    largest = flat.abs().argmax(1, keepdim=True)
    return torch.zeros_like(flat).scatter_(1, largest, flat.gather(1, largest).sign()).view_as(gradient)


def norm_gradient(v: Tensor, p: float) -> Tensor:
    """Return the gradient of ‖vᵢ‖ₚ at each row, up to a positive factor per row: a vector that is dual to vᵢ.

    Args:
        v: Vectors, shape (N, *).
        p: 1, 2 or ``math.inf``.

    Returns:
        Gradients, shape (N, *), with coordinates in [−1, 1] and at least one of them ±1: for ℓ2 v over its largest
        coordinate, for ℓ1 its signs, for ℓ∞ the sign of its largest coordinate. Zero for a zero row.
    """
    if p != 2:
        return steepest_direction(v, dual_exponent(p))
    # Not v itself: a gradient that is passed on from it would vanish in single precision for outputs of 1e-20.
    return v / per_row(row_norm(v, math.inf).clamp_min(torch.finfo(v.dtype).tiny), v)


def rescale(v: Tensor, length: Tensor | float, p: float) -> Tensor:
    """Return v with each row stretched to ‖vᵢ‖ₚ = lengthᵢ: the projection on a sphere around zero.

    Args:
        v: Vectors, shape (N, *). A zero row stays zero, and one too short for the dtype (1e-38) stays too short.
        length: Radius of the sphere, one number or shape (N,).
        p: 1, 2 or ``math.inf``.

    Returns:
        Vectors, shape (N, *).
    """
    limits = torch.finfo(v.dtype)
    norm = scaled_norm(v, p).clamp_min(limits.tiny)
    return v * per_row((length / norm).clamp_max(limits.max), v)  # clamped: a zero row times ∞ would be NaN


def per_row(value: Tensor, like: Tensor) -> Tensor:
    """Return one value per row, shape (N,), in a shape that broadcasts against (N, *)."""
    return value.view(-1, *[1] * (like.dim() - 1))


def random_in_ball(like: Tensor, p: float, generator: torch.Generator) -> Tensor:
    """Draw one point per row, uniformly from the unit ball of ℓp.

    Args:
        like: Gives shape (N, *), dtype and device.
        p: 1, 2 or ``math.inf``.
        generator: The only source of randomness; on the device of ``like``.

    Returns:
        Points, shape (N, *), with ‖·‖ₚ ≤ 1.

    References:
        F. Barthe et al., *A probabilistic approach to the geometry of the ℓpⁿ-ball*, Ann. Probab. 33 (2005).
    """
    if p == math.inf:
        return torch.empty_like(like).uniform_(-1, 1, generator=generator)
    if p == 2:
        v = torch.empty_like(like).normal_(generator=generator)
    else:  # Laplace noise: an exponential length with a fair sign, coordinate by coordinate
        v = torch.empty_like(like).exponential_(generator=generator)
        v *= torch.empty_like(like).uniform_(-1, 1, generator=generator).sign()
    length = torch.empty(len(like), dtype=like.dtype, device=like.device).uniform_(generator=generator)
    return rescale(v, length ** (1 / max(1, like[:1].numel())), p)


def as_rows(v: Tensor) -> Tensor:
    """Return v, shape (N, *), as a matrix, shape (N, number of coordinates)."""
    return v if v.dim() == 2 else v.reshape(v.shape[0], v.shape[1:].numel())
