"""The difference quotient q = ‖f(x) − f(x′)‖ / ‖x − x′‖ of a pair, its limit ε → 0, and how fine a pair may be."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from torchlipreg.geometry.derivative import Function, directional_derivative
from torchlipreg.geometry.norms import norm_gradient, per_row, row_norm
from torchlipreg.geometry.pairs import PairSet


class Resolution(NamedTuple):
    """How far apart the points of a pair are, and how close they may come.

    Attributes:
        radius: ε in the input norm; None for pairs of different data points.
        floor: The distance under which a quotient is rounding noise.
    """

    radius: float | None
    floor: float

    @property
    def limit(self) -> bool:
        """Whether ε is zero or not resolved: the limit ε → 0, in which a pair is a point and a direction v = x′ − x."""
        return self.radius is not None and self.radius < self.floor

    @property
    def unit(self) -> float:
        """The length of v in the limit, where any would do: such that x + v does not round v away for large ‖x‖."""
        return max(1.0, self.floor)

    @property
    def collapse_distance(self) -> float:
        """The distance under which a pair has collapsed: none in the limit, where x′ − x is a mere direction."""
        return 0.0 if self.limit else self.floor

    def divisor(self, distance: Tensor) -> Tensor:
        """Return what a difference is divided by: the distance, where that is not rounding noise or zero."""
        return distance.clamp_min(self.collapse_distance or torch.finfo(distance.dtype).tiny)


@dataclass(frozen=True)
class PairQuotient:
    """The quotient of each pair, with gradients to the pairs and to the parameters of f.

    In the limit ε → 0 the difference is J v with v = x′ − x, and the quotient ‖J v‖ / ‖v‖ (Property 5).

    Attributes:
        f: The model as a fixed function.
        input_norm: 1, 2 or ``math.inf``: ‖x − x′‖.
        output_norm: 1, 2 or ``math.inf``: ‖f(x) − f(x′)‖.
        resolution: ε and the floor.
        fx: f(x) if it is known already, shape (N, *).
    """

    f: Function
    input_norm: float
    output_norm: float
    resolution: Resolution
    fx: Tensor | None = None

    def __call__(self, pairs: PairSet, valid: Tensor | None = None) -> Tensor:
        """Return the quotients, shape (N,), or (N, positions) where each position is an output; zero if not valid.

        Args:
            pairs: Shape (N, *).
            valid: Which of them count, shape (N,), bool; None for all.
        """
        difference = self.difference(pairs)
        if valid is not None:
            difference = torch.where(per_row(valid, difference), difference, 0)
        return self.of(difference, pairs)

    def of(self, difference: Tensor, pairs: PairSet) -> Tensor:
        """Return the quotients that belong to differences, shape (N, *)."""
        distance = self.resolution.divisor(pairs.distance(self.input_norm))
        if self._per_position:
            norms = row_norm(difference.flatten(0, 1), self.output_norm).view(difference.shape[:2])
            return norms / distance.unsqueeze(1)
        return row_norm(difference, self.output_norm) / distance

    @property
    def _per_position(self) -> bool:
        return getattr(self.f, "per_position", False)

    def difference(self, pairs: PairSet) -> Tensor:
        """Return f(x′) − f(x) of each pair, shape (N, *).

        Raises:
            ValueError: If the output does not depend on f's input or parameters in a differentiable way.
        """
        if self.resolution.limit:
            at_x, at_x_prime = None, directional_derivative(self.f, pairs.x, pairs.x_prime - pairs.x)
        elif self.fx is not None:
            at_x, at_x_prime = self.fx, self.f(pairs.x_prime)
        elif getattr(self.f, "apart", False):
            at_x, at_x_prime = self.f(pairs.x), self.f(pairs.x_prime)
        else:
            at_x, at_x_prime = self.f(torch.cat(pairs)).chunk(2)
        if pairs.x_prime.requires_grad and not at_x_prime.requires_grad:  # whatever f(x) carries, if the loop lent it
            raise ValueError(
                "Expected the model's output to carry a gradient, but it has none: look for detach(), no_grad(), "
                "set_grad_enabled(self.training) or inference tensors inside `model` or `output`."
            )
        return at_x_prime if at_x is None else at_x_prime - at_x

    def steepest(self, pairs: PairSet, places: int) -> Tensor:
        """Return the largest ‖J v‖ / ‖v‖ at so many places from xᵢ to x′ᵢ, v = x′ᵢ − xᵢ: the shape of the quotients.

        f(x′) − f(x) is the integral of J v along that way, if f has no steps: no quotient is larger than all slopes on
        it. Infinite where a slope is not defined.
        """
        v = pairs.x_prime - pairs.x
        on_the_way = torch.cat([pairs.x + t * v for t in torch.linspace(0, 1, places).tolist()])
        change = directional_derivative(self.f, on_the_way, torch.cat([v] * places))
        slopes = torch.stack([self.of(part, pairs) for part in change.chunk(places)])
        return slopes.nan_to_num(nan=math.inf).amax(0)

    # What an ascent climbs: yᵢ and uᵢ, whose gradient it follows is that of Σ ⟨uᵢ, yᵢ⟩ with u held fixed.

    def square(self, pairs: PairSet) -> tuple[Tensor, Tensor]:
        """Climb q², which is differentiable on level sets f(x) = f(x′), where q is not (Property 15)."""
        squared = self(pairs).square()
        squared = squared.mean(1) if self._per_position else squared
        return squared, torch.ones_like(squared)

    def height(self, pairs: PairSet) -> tuple[Tensor, Tensor]:
        """Climb ‖f(x′) − f(x)‖, as power steps do, which keep the distance: its gradient is Jᵀ(f(x′) − f(x)) for ℓ2."""
        difference = self.difference(pairs)
        fixed = difference.detach()
        if self._per_position and self.output_norm != 2:  # each position counts by its own norm, as in the mean of q²
            flat = fixed.flatten(0, 1)
            u = norm_gradient(flat, self.output_norm) * row_norm(flat, self.output_norm).unsqueeze(1)
            return difference, u.view_as(difference)
        return difference, norm_gradient(fixed, self.output_norm)


def by_row(q: Tensor) -> Tensor:
    """Return the largest quotient of each pair, shape (N,), where each position of the output has its own."""
    return q if q.dim() == 1 else q.amax(1)


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
