"""PairSet: the finite set X_lip of input pairs: birth from data or in a ball, bounds, re-seeding."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from torchlipreg.norms import as_rows, batch_norm, per_row, random_in_ball, rescale


class PairSet(NamedTuple):
    """Pairs (xᵢ, x′ᵢ) of inputs: X_lip in the report, eq. (3).

    Attributes:
        x: First points, shape (N, *).
        x_prime: Second points, shape (N, *). In the limit ε → 0, ``x_prime - x`` is the direction of the
            derivative, of unit length: the pair itself has then shrunk to the point ``x``.
    """

    x: Tensor
    x_prime: Tensor

    def map(self, function: Callable[..., Tensor], *others: PairSet) -> PairSet:
        """Apply a function of tensors to the first points and to the second points."""
        return PairSet(function(self.x, *(o.x for o in others)), function(self.x_prime, *(o.x_prime for o in others)))

    def to(self, device: torch.device) -> PairSet:
        """Return the pairs on a device."""
        return self.map(lambda z: z.to(device))

    def distance(self, p: float) -> Tensor:
        """Return ‖xᵢ − x′ᵢ‖ₚ, shape (N,)."""
        return batch_norm(self.x_prime - self.x, p)

    def clamp(self, bounds: tuple[float, float] | None, *, anchored: bool = False) -> PairSet:
        """Return the pairs with every coordinate in [lo, hi] (Assumption 3); an anchored x stays where it is."""
        if bounds is None:
            return self
        return PairSet(self.x if anchored else self.x.clamp(*bounds), self.x_prime.clamp(*bounds))

    def where(self, keep: Tensor, other: PairSet) -> PairSet:
        """Return these pairs where ``keep``, shape (N,), is true, and the others elsewhere."""
        keep = per_row(keep, self.x)
        return self.map(lambda ours, theirs: ours if ours is theirs else torch.where(keep, ours, theirs), other)

    def isfinite(self) -> Tensor:
        """Return, for each pair, whether all its coordinates are finite, shape (N,)."""
        return all_finite(self.x) & all_finite(self.x_prime)


def all_finite(x: Tensor) -> Tensor:
    """Return, for each row of x, shape (N, *), whether its sum, and so each coordinate, is finite: shape (N,)."""
    sums = as_rows(x).sum(1)
    return sums - sums == 0  # ∞ − ∞ is NaN; a tenth of the time of x.isfinite().all(1) on a CPU


def draw_from_data(x: Tensor, num_pairs: int, generator: torch.Generator) -> PairSet:
    """Draw pairs of two different data points: the start of X_lip in Algorithm 1.

    Args:
        x: Data points, shape (M, *), M ≥ 2.
        num_pairs: How many pairs; may exceed M.
        generator: The only source of randomness.

    Returns:
        ``num_pairs`` pairs.
    """
    first = torch.randint(len(x), (num_pairs,), generator=generator, device=x.device)
    offset = torch.randint(1, len(x), (num_pairs,), generator=generator, device=x.device)
    return PairSet(x[first], x[(first + offset) % len(x)])


def draw_points(x: Tensor, num_points: int, generator: torch.Generator) -> Tensor:
    """Draw data points with replacement: shape (num_points, *) from x, shape (M, *)."""
    return x[torch.randint(len(x), (num_points,), generator=generator, device=x.device)]


def draw_in_ball(x: Tensor, radius: float, p: float, generator: torch.Generator, *, on_sphere: bool = False) -> PairSet:
    """Draw a partner x′ for each point, uniformly in the ball of ℓp around it: the start of Algorithm 4.

    Args:
        x: Centres, shape (N, *).
        radius: ε, in the units of x.
        p: 1, 2 or ``math.inf``.
        generator: The only source of randomness.
        on_sphere: Push the partner out to distance ε (the projection of Algorithm 3).

    Returns:
        Pairs (x, x′) with ‖x − x′‖ₚ ≤ radius.
    """
    offset = random_in_ball(x, p, generator)
    if on_sphere:
        offset = rescale(offset, 1.0, p)
    return PairSet(x, torch.add(x, offset, alpha=radius, out=offset))


def add_noise(x: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    """Add Gaussian noise of standard deviation sigma, in the units of x (Remark 2, Property 2)."""
    return torch.add(x, torch.empty_like(x).normal_(generator=generator), alpha=sigma) if sigma else x
