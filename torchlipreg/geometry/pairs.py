"""PairSet: the finite set X_lip of input pairs: birth from data or in a ball, bounds."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from torchlipreg.geometry.norms import as_rows, per_row, random_in_ball, rescale, row_norm


class PairSet(NamedTuple):
    """Pairs (xᵢ, x′ᵢ) of inputs: X_lip in the report, eq. (3).

    Attributes:
        x: First points, shape (N, *).
        x_prime: Second points, shape (N, *). In the limit ε → 0, ``x_prime - x`` is the direction of the
            derivative, of a constant length: the pair itself has then shrunk to the point ``x``.
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
        return row_norm(self.x_prime - self.x, p)

    def clamp(self, bounds: tuple[float, float] | None, *, anchored: bool = False) -> PairSet:
        """Return the pairs with every coordinate in [lo, hi] (Assumption 3); an anchored x stays where it is."""
        if bounds is None:
            return self
        return PairSet(self.x if anchored else self.x.clamp(*bounds), self.x_prime.clamp(*bounds))

    def turned_inside(self, bounds: tuple[float, float], p: float, shortest: float = math.inf) -> PairSet:
        """Return the pairs clamped, x anchored, and turned round where that makes them longer.

        Args:
            bounds: Of each coordinate.
            p: The input norm.
            shortest: Pairs of at least this length are not turned round.

        Returns:
            Pairs of which those that pointed out of a corner have not collapsed.
        """
        inside, turned = self.clamp(bounds, anchored=True), PairSet(self.x, 2 * self.x - self.x_prime)
        turned, length = turned.clamp(bounds, anchored=True), inside.distance(p)
        return inside.where((length >= shortest) | (length >= turned.distance(p)), turned)

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


def finite_copy(x: Tensor) -> Tensor:
    """Return x with zeros for NaN and infinity."""
    return x.nan_to_num(0.0, 0.0, 0.0)


def at_least_one(x: Tensor) -> Tensor:
    """Return x, shape (N, *), or a row of zeros without one: a rank without data runs as many forwards as others."""
    return x if len(x) else x.new_zeros(1, *x.shape[1:])


def draw_rows(x: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw row numbers of x, shape (M, *), with replacement: int64, shape (count,)."""
    return torch.randint(len(x), (count,), generator=generator, device=x.device)


def draw_partners(x: Tensor, rows: Tensor, generator: torch.Generator) -> PairSet:
    """Pair each of some data points with another one: the start of X_lip in Algorithm 1.

    Args:
        x: Data points, shape (M, *), M ≥ 2.
        rows: The points to pair, shape (N,).
        generator: The only source of randomness.

    Returns:
        N pairs of two different rows of x.
    """
    offset = torch.randint(1, len(x), rows.shape, generator=generator, device=x.device)
    return PairSet(x[rows], x[(rows + offset) % len(x)])


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


def on_sphere(pairs: PairSet, centre: Tensor, radius: float, p: float) -> PairSet:
    """Project both points on the ε-sphere around a centre, a point at the centre staying there (Algorithm 3)."""
    return pairs.map(lambda z: centre + rescale(z - centre, radius, p))


def is_stuck(pairs: PairSet, q: Tensor, shortest: float, p: float) -> Tensor:
    """Say which pairs ascent cannot move: on a level set f(x) = f(x′) (Property 1), collapsed, or not finite.

    Rounding leaves a quotient of a few machine epsilons, relative to the largest, on a level set.

    Args:
        pairs: Pairs, shape (N, *).
        q: Their quotients, shape (N,).
        shortest: Distance under which a pair has collapsed; 0 in the limit ε → 0, in which x′ − x is a mere direction.
        p: The input norm.

    Returns:
        Shape (N,), bool.
    """
    finite = q.isfinite()
    noise = 32 * torch.finfo(q.dtype).eps * torch.where(finite, q, 0).amax()
    return (q <= noise) | (pairs.distance(p) < shortest) | ~finite
