"""The ascent: quotient, gradient, step, project. Rules of how to step are in :mod:`torchlipreg.geometry.rules`.

A rule's memory is a dict of pair sets, one entry per pair (a number per pair is a column of shape (N, 1, …)), so that
pairs can be drawn anew, saved and dealt out to ranks one by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from torchlipreg.geometry.pairs import PairSet

# pairs -> y and u, one row each: the ascent follows the gradient of Σ ⟨uᵢ, yᵢ⟩, u held fixed. For numbers y, u = 1.
Objective = Callable[[PairSet], tuple[Tensor, Tensor]]
Memory = dict[str, PairSet]


class Rule(Protocol):
    """One way to move pairs uphill."""

    def start(self, pairs: PairSet) -> Memory:
        """Return the memory of pairs that have not moved yet."""

    def gradient_point(self, pairs: PairSet, memory: Memory) -> PairSet:
        """Return the points at which the next gradient is taken."""

    def step(self, pairs: PairSet, at: PairSet, gradient: PairSet, memory: Memory) -> tuple[PairSet, Memory]:
        """Return the moved pairs and the new memory, of the gradient at the points that were asked for."""


def ascend(
    pairs: PairSet,
    memory: Memory,
    rule: Rule,
    objective: Objective,
    *,
    steps: int,
    anchored: bool,
    project: Callable[[PairSet], PairSet],
) -> tuple[PairSet, Memory]:
    """Move pairs up an objective.

    Args:
        pairs: Starting pairs, shape (N, *).
        memory: The rule's.
        rule: How to step.
        objective: What each pair climbs: :meth:`PairQuotient.square`, or for power steps :meth:`PairQuotient.height`.
        steps: How many steps.
        anchored: Keep x fixed; only x′ moves.
        project: Back to the domain after each step.

    Returns:
        The moved pairs, detached, and the rule's new memory.
    """
    for _ in range(steps):
        at = rule.gradient_point(pairs, memory)
        at = pairs if at is pairs else project(at)  # the model may not be defined outside
        moved, moved_memory = rule.step(pairs, at, pair_gradient(objective, at, anchored), memory)
        moved = project(moved)
        # Refused: a step without a direction or back onto x, and the NaN of a diverged model's gradient.
        sound = positive_and_finite(moved.distance(math.inf))
        pairs, memory = moved.where(sound, pairs), where_memory(sound, moved_memory, memory)
    return pairs, memory


def positive_and_finite(value: Tensor) -> Tensor:
    """Say which values lie in (0, ∞): two comparisons, as both are false for NaN."""
    return (value > 0) & (value < math.inf)


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


def where_memory(keep: Tensor, memory: Memory, other: Memory) -> Memory:
    """Return the memory where ``keep``, shape (N,), is true, and the other one elsewhere."""
    return {name: ours.where(keep, other[name]) for name, ours in memory.items()}
