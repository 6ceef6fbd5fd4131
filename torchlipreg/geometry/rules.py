"""How to step uphill: power steps, SGD with momentum, Nesterov, Adam: each one rule for ``ascent.ascend``."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchlipreg.geometry.ascent import Memory
from torchlipreg.geometry.norms import per_row, steepest_direction
from torchlipreg.geometry.pairs import PairSet


@dataclass
class Power:
    """Steepest ascent with an unbounded step on the sphere of the pair's own distance.

    v ← direction(Jᵀ(f(x + εv) − f(x))): the power method for the local operator norm, in the dual norm of the
    input's. An anchored pair turns around x, a free one around its midpoint, and both keep their distance. The
    objective to hand in is ‖f(x) − f(x′)‖: its gradient has the direction of q²'s at a constant distance.

    Attributes:
        input_norm: 1, 2 or ``math.inf``.
        anchored: x stays.
        centre: Turn free pairs around these points, shape (N, *), at distance ``radius`` on both sides instead.
        radius: ε, needed with ``centre``.

    References:
        D. W. Boyd, *The power method for ℓp norms*, Linear Algebra Appl. 9 (1974). Not in the report.
    """

    input_norm: float
    anchored: bool
    centre: Tensor | None = None
    radius: float = 0.0

    def start(self, pairs: PairSet) -> Memory:
        """Keep no memory."""
        return {}

    def gradient_point(self, pairs: PairSet, memory: Memory) -> PairSet:
        """Take the gradient where the pairs are."""
        return pairs

    def step(self, pairs: PairSet, at: PairSet, gradient: PairSet, memory: Memory) -> tuple[PairSet, Memory]:
        """Turn each pair to its steepest direction; one without (zero gradient) collapses, which ``ascend`` refuses."""
        p = self.input_norm
        reach = pairs.distance(p)
        if self.anchored:
            direction = steepest_direction(gradient.x_prime, p)
            return PairSet(pairs.x, torch.addcmul(pairs.x, per_row(reach, direction), direction)), memory
        direction = steepest_direction(gradient.x_prime - gradient.x, p)
        half = per_row(reach / 2, direction) if self.centre is None else self.radius
        centre = (pairs.x + pairs.x_prime) / 2 if self.centre is None else self.centre
        return PairSet(centre - half * direction, centre + half * direction), memory


@dataclass
class SGD:
    """SGD with momentum: u ← μ u + ∇q², z ← z + τ u (Algorithm 1; with μ = 0 the steps of Algorithms 3 and 4).

    Attributes:
        step_size: τ, in squared input units per unit of q².
        momentum: μ in [0, 1).
    """

    step_size: float
    momentum: float

    def start(self, pairs: PairSet) -> Memory:
        """Start at rest."""
        return {"velocity": pairs.map(torch.zeros_like)}

    def gradient_point(self, pairs: PairSet, memory: Memory) -> PairSet:
        """Take the gradient where the pairs are."""
        return pairs

    def step(self, pairs: PairSet, at: PairSet, gradient: PairSet, memory: Memory) -> tuple[PairSet, Memory]:
        """Add the velocity."""
        velocity = memory["velocity"].map(lambda u, g: self.momentum * u + g, gradient)
        return pairs.map(lambda z, u: z + self.step_size * u, velocity), {"velocity": velocity}


@dataclass
class Nesterov:
    """Nesterov's accelerated gradient, Algorithm 2: θ ← ν + τ ∇q²(ν), ν ← γ θ_old + (1 − γ) θ.

    Departure from the report: as printed, Algorithm 2 starts at λ₀ = 0 and uses γₖ₊₁ = (1 − λₖ)/λₖ₊₁ one index late,
    so that γ₁ = 1 and its second iteration goes back to θ₁, and γ₀ is not given. Here γₖ = (1 − λₖ)/λₖ₊₁ and
    νₖ = γₖ θₖ₋₁ + (1 − γₖ) θₖ: γ₀ = 1 (ν₀ = θ₀), γ₁ = 0, and the same sequence from there. ν is formed from the
    projected θ; otherwise it would run away from pairs that the bounds hold back.

    Attributes:
        step_size: τ, in squared input units per unit of q².

    References:
        Y. Nesterov, 1983; S. Bubeck, *Convex Optimization: Algorithms and Complexity*, section 3.7.
    """

    step_size: float

    def start(self, pairs: PairSet) -> Memory:
        """Start with λ = 0, for which γ = 1 and ν = θ."""
        return {"previous": pairs, "lambda": pairs.map(lambda z: _column(z, 0.0))}

    def gradient_point(self, pairs: PairSet, memory: Memory) -> PairSet:
        """Take the gradient at ν."""
        gamma = memory["lambda"].map(lambda k: (1 - k) / _next_lambda(k))
        return pairs.map(lambda new, old, g: new + g * (old - new), memory["previous"], gamma)

    def step(self, pairs: PairSet, at: PairSet, gradient: PairSet, memory: Memory) -> tuple[PairSet, Memory]:
        """Step from ν."""
        moved = at.map(lambda nu, g: nu + self.step_size * g, gradient)
        return moved, {"previous": pairs, "lambda": memory["lambda"].map(_next_lambda)}


@dataclass
class Adam:
    """Adam (Kingma, Ba, arXiv:1412.6980, Algorithm 1), uphill, with its step count kept per pair.

    Attributes:
        step_size: τ, in the units of the input.
    """

    step_size: float
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    def start(self, pairs: PairSet) -> Memory:
        """Start with zero moments."""
        zeros = pairs.map(torch.zeros_like)
        return {"first": zeros, "second": zeros, "count": pairs.map(lambda z: _column(z, 0.0))}

    def gradient_point(self, pairs: PairSet, memory: Memory) -> PairSet:
        """Take the gradient where the pairs are."""
        return pairs

    def step(self, pairs: PairSet, at: PairSet, gradient: PairSet, memory: Memory) -> tuple[PairSet, Memory]:
        """Step by the bias-corrected moments."""
        count = memory["count"].map(lambda k: k + 1)
        first = memory["first"].map(lambda m, g: self.beta1 * m + (1 - self.beta1) * g, gradient)
        second = memory["second"].map(lambda s, g: self.beta2 * s + (1 - self.beta2) * g * g, gradient)

        def move(z: Tensor, m: Tensor, s: Tensor, k: Tensor) -> Tensor:
            m, s = m / (1 - self.beta1**k), s / (1 - self.beta2**k)
            return z + self.step_size * m / (s.sqrt() + self.epsilon)

        return pairs.map(move, first, second, count), {"first": first, "second": second, "count": count}


def _next_lambda(k: Tensor) -> Tensor:
    return (1 + (1 + 4 * k**2).sqrt()) / 2


def _column(z: Tensor, value: float) -> Tensor:
    return z.new_full((len(z), *[1] * (z.dim() - 1)), value)
