"""Ascent on the difference quotient: power steps, SGD with momentum, Nesterov, Adam.

``ascend`` is the loop; a rule is one step of it. A rule's state is a dict of pair sets, one entry per pair (a
number per pair is a column of shape (N, 1, …)), so that pairs can be re-seeded, saved and dealt out to ranks one by
one. Gradient rules climb q², which is differentiable on level sets f(x) = f(x′), where q is not (Property 15). Power
steps keep the distance and look at the gradient's direction only: for them ‖f(x) − f(x′)‖ does as well, whose gradient
is Jᵀ(f(x′) − f(x)) for ℓ2, up to a factor. So an objective may be a vector y with a covector u.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from torchlipreg.norms import per_row, rescale, steepest_direction
from torchlipreg.pairs import PairSet

# pairs -> y and u, one row each: the ascent follows the gradient of Σ ⟨uᵢ, yᵢ⟩, u held fixed. For numbers y, u = 1.
Objective = Callable[[PairSet], tuple[Tensor, Tensor]]
State = dict[str, PairSet]


class Rule(Protocol):
    """One way to move pairs uphill."""

    def start(self, pairs: PairSet) -> State:
        """Return the state of pairs that have not moved yet."""

    def look_at(self, pairs: PairSet, state: State) -> PairSet:
        """Return the points at which the next gradient is taken."""

    def step(self, pairs: PairSet, gradient: PairSet, state: State) -> tuple[PairSet, State]:
        """Return the moved pairs and the new state."""


def ascend(
    pairs: PairSet,
    state: State,
    rule: Rule,
    objective: Objective,
    *,
    steps: int,
    anchored: bool,
    project: Callable[[PairSet], PairSet],
) -> tuple[PairSet, State]:
    """Move pairs up an objective: gradient, step, projection.

    Args:
        pairs: Starting pairs, shape (N, *).
        state: The rule's state.
        rule: How to step.
        objective: From pairs to what each climbs, as yᵢ and uᵢ: qᵢ² and 1, or for power steps f(x′ᵢ) − f(xᵢ) and the
            gradient of its norm.
        steps: How many steps.
        anchored: Keep x fixed; only x′ moves.
        project: Back to the domain after each step.

    Returns:
        The moved pairs, detached, and the rule's new state.
    """
    for _ in range(steps):
        gradient = pair_gradient(objective, rule.look_at(pairs, state), anchored)
        moved, new_state = rule.step(pairs, gradient, state)
        moved = project(moved)
        distance = moved.distance(math.inf)
        # Refused: a step without a direction or back onto x, and the NaN of a diverged model's gradient.
        sound = distance / distance == 1  # 0/0 and ∞/∞ are NaN
        pairs, state = moved.where(sound, pairs), where_state(sound, new_state, state)
    return pairs, state


def pair_gradient(objective: Objective, pairs: PairSet, anchored: bool) -> PairSet:
    """Return the gradient of each pair's objective with respect to the pair; zero for an anchored x."""
    with torch.enable_grad():
        x, x_prime = pairs.x.detach(), pairs.x_prime.detach().requires_grad_()
        moving = [x_prime] if anchored else [x.requires_grad_(), x_prime]
        y, u = objective(PairSet(x, x_prime))
        # autograd.grad, not backward(): the ascent must not touch the parameters' .grad
        gradients = torch.autograd.grad(y, moving, u, materialize_grads=True)
    # Expanded: zeros that take no memory.
    return PairSet(x.new_zeros(()).expand_as(x) if anchored else gradients[0], gradients[-1])


@dataclass(frozen=True)
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

    def start(self, pairs: PairSet) -> State:
        """Keep no state."""
        return {}

    def look_at(self, pairs: PairSet, state: State) -> PairSet:
        """Take the gradient where the pairs are."""
        return pairs

    def step(self, pairs: PairSet, gradient: PairSet, state: State) -> tuple[PairSet, State]:
        """Turn each pair to its steepest direction; one without (zero gradient) collapses, which ``ascend`` refuses."""
        p = self.input_norm
        reach = pairs.distance(p)
        if self.anchored:
            direction = steepest_direction(gradient.x_prime, p)
            return PairSet(pairs.x, torch.addcmul(pairs.x, per_row(reach, direction), direction)), state
        direction = steepest_direction(gradient.x_prime - gradient.x, p)
        half = per_row(reach / 2, direction) if self.centre is None else self.radius
        centre = (pairs.x + pairs.x_prime) / 2 if self.centre is None else self.centre
        return PairSet(centre - half * direction, centre + half * direction), state


@dataclass(frozen=True)
class Momentum:
    """SGD with momentum: u ← μ u + ∇q², z ← z + τ u (Algorithm 1; with μ = 0 the steps of Algorithms 3 and 4).

    Attributes:
        step_size: τ, in squared input units per unit of q².
        momentum: μ in [0, 1).
    """

    step_size: float
    momentum: float

    def start(self, pairs: PairSet) -> State:
        """Start at rest."""
        return {"velocity": pairs.map(torch.zeros_like)}

    def look_at(self, pairs: PairSet, state: State) -> PairSet:
        """Take the gradient where the pairs are."""
        return pairs

    def step(self, pairs: PairSet, gradient: PairSet, state: State) -> tuple[PairSet, State]:
        """Add the velocity."""
        velocity = state["velocity"].map(lambda u, g: self.momentum * u + g, gradient)
        return pairs.map(lambda z, u: z + self.step_size * u, velocity), {"velocity": velocity}


@dataclass(frozen=True)
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

    def start(self, pairs: PairSet) -> State:
        """Start with λ = 0, for which γ = 1 and ν = θ."""
        return {"previous": pairs, "lambda": pairs.map(lambda z: _column(z, 0.0))}

    def look_at(self, pairs: PairSet, state: State) -> PairSet:
        """Take the gradient at ν."""
        gamma = state["lambda"].map(lambda k: (1 - k) / _next_lambda(k))
        return pairs.map(lambda new, old, g: new + g * (old - new), state["previous"], gamma)

    def step(self, pairs: PairSet, gradient: PairSet, state: State) -> tuple[PairSet, State]:
        """Step from ν."""
        moved = self.look_at(pairs, state).map(lambda nu, g: nu + self.step_size * g, gradient)
        return moved, {"previous": pairs, "lambda": state["lambda"].map(_next_lambda)}


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma, Ba, arXiv:1412.6980, Algorithm 1), uphill, with its step count kept per pair.

    Attributes:
        step_size: τ, in the units of the input.
    """

    step_size: float
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    def start(self, pairs: PairSet) -> State:
        """Start with zero moments."""
        zeros = pairs.map(torch.zeros_like)
        return {"first": zeros, "second": zeros, "count": pairs.map(lambda z: _column(z, 0.0))}

    def look_at(self, pairs: PairSet, state: State) -> PairSet:
        """Take the gradient where the pairs are."""
        return pairs

    def step(self, pairs: PairSet, gradient: PairSet, state: State) -> tuple[PairSet, State]:
        """Step by the bias-corrected moments."""
        count = state["count"].map(lambda k: k + 1)
        first = state["first"].map(lambda m, g: self.beta1 * m + (1 - self.beta1) * g, gradient)
        second = state["second"].map(lambda s, g: self.beta2 * s + (1 - self.beta2) * g * g, gradient)

        def move(z: Tensor, m: Tensor, s: Tensor, k: Tensor) -> Tensor:
            m, s = m / (1 - self.beta1**k), s / (1 - self.beta2**k)
            return z + self.step_size * m / (s.sqrt() + self.epsilon)

        return pairs.map(move, first, second, count), {"first": first, "second": second, "count": count}


def where_state(keep: Tensor, state: State, other: State) -> State:
    """Return the state where ``keep``, shape (N,), is true, and the other one elsewhere."""
    return {name: ours.where(keep, other[name]) for name, ours in state.items()}


def on_sphere(pairs: PairSet, centre: Tensor, radius: float, p: float) -> PairSet:
    """Project both points on the ε-sphere around a centre, a point at the centre staying there (Algorithm 3)."""
    return pairs.map(lambda z: centre + rescale(z - centre, radius, p))


def _next_lambda(k: Tensor) -> Tensor:
    return (1 + (1 + 4 * k**2).sqrt()) / 2


def _column(z: Tensor, value: float) -> Tensor:
    return z.new_full((len(z), *[1] * (z.dim() - 1)), value)
