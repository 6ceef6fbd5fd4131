"""Schedules of a penalty's weight and radius, stepped like a learning-rate scheduler."""

from __future__ import annotations

import contextlib
import numbers
from typing import Any, Protocol

from torchlipreg.checks import check_flag, check_number, check_state_keys


class HasWeight(Protocol):
    """What a schedule of the weight needs of a penalty; ``WeightWarmup`` looks at ``last_load`` where there is one."""

    weight: float


class HasRadius(Protocol):
    """What ``RadiusDecay`` needs of a penalty."""

    radius: float | None


def check_penalty(penalty: Any, attribute: str) -> None:
    """Raise TypeError unless the penalty has a number, or None, as this attribute."""
    value = getattr(penalty, attribute, "nothing")
    if value is not None and not isinstance(value, numbers.Real):
        raise TypeError(
            f"Expected argument `penalty` to be a penalty, with a number as its `{attribute}`, but got "
            f"{type(penalty).__name__}."
        )


class DiscrepancyWeight:
    """Raise the weight while the model is accurate enough, lower it otherwise: the discrepancy principle.

    Call :meth:`step` as often as you know an accuracy, on every rank with the same one::

        schedule = DiscrepancyWeight(penalty, target=0.95, increment=0.01)
        for epoch in range(epochs):
            accuracy = train_one_epoch(...)
            schedule.step(accuracy)

    Args:
        penalty: Its ``weight`` is set by :meth:`step`.
        target: α, the accuracy to hold, in [0, 1].
        increment: dλ ≥ 0, what a step adds or takes away; the weight never falls below 0.
        max_weight: Upper limit of the weight, ≥ 0; None for no limit.
        warmup: Set the weight to 0 now, until the accuracy first exceeds ``target``; that step puts the penalty's
            own weight back, and the principle takes over from the next.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a number is out of range.

    References:
        Report, Algorithm 1 (the principle) and section 3.2 (the warm-up, with a threshold of 0.9).
    """

    def __init__(
        self,
        penalty: HasWeight,
        target: float,
        increment: float,
        *,
        max_weight: float | None = None,
        warmup: bool = False,
    ) -> None:
        check_penalty(penalty, "weight")
        check_flag("warmup", warmup)
        self.penalty = penalty
        self.target = check_number("target", target)
        if self.target > 1:
            raise ValueError(f"Expected argument `target` to be an accuracy in [0, 1], but got {target!r}.")
        self.increment = check_number("increment", increment)
        self.max_weight = None if max_weight is None else check_number("max_weight", max_weight)
        self._waiting_weight: float | None = None
        if warmup:
            self._waiting_weight, penalty.weight = penalty.weight, 0.0

    @property
    def warming_up(self) -> bool:
        """Whether the weight is still held at 0."""
        return self._waiting_weight is not None

    def step(self, accuracy: float) -> None:
        """Move the weight by one increment.

        Args:
            accuracy: Running or epoch accuracy in [0, 1]: a number or a 0-dim tensor.

        Raises:
            TypeError: If ``accuracy`` is no number.
            ValueError: If it is not in [0, 1].
        """
        value: Any = accuracy
        with contextlib.suppress(AttributeError, RuntimeError, ValueError):  # check_number tells what is wrong
            value = value.item()
        accuracy = check_number("accuracy", value)
        if accuracy > 1:
            raise ValueError(f"Expected argument `accuracy` to be in [0, 1], not a percentage, but got {accuracy!r}.")
        above = accuracy > self.target
        if self._waiting_weight is not None:
            if above:
                self.penalty.weight, self._waiting_weight = self._limited(self._waiting_weight), None
            return
        weight = max(0.0, self.penalty.weight + (self.increment if above else -self.increment))
        self.penalty.weight = self._limited(weight)

    def _limited(self, weight: float) -> float:
        return weight if self.max_weight is None else min(weight, self.max_weight)

    def state_dict(self) -> dict[str, Any]:
        """Return the schedule's state, the current weight included."""
        return {"weight": self.penalty.weight, "waiting_weight": self._waiting_weight}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state, and the penalty's weight with it.

        Args:
            state: From :meth:`state_dict`.

        Raises:
            TypeError, ValueError: If ``state`` is not a state of this class.
        """
        check_state_keys(state, {"weight", "waiting_weight"}, type(self).__name__, may_be_none="waiting_weight")
        waiting = state["waiting_weight"]
        waiting = None if waiting is None else check_number("waiting_weight", waiting)
        self.penalty.weight, self._waiting_weight = state["weight"], waiting


class ExponentialWeight:
    """Multiply the weight by a factor, as often as :meth:`step` is called: λ ← γ λ.

    Args:
        penalty: Its ``weight`` is set by :meth:`step`.
        gamma: γ > 0.
        max_weight: Upper limit of the weight, ≥ 0; None for no limit.
        min_weight: Lower limit of the weight, ≥ 0.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a number is out of range, or ``min_weight`` is above ``max_weight``.

    References:
        Not in the report, whose weight changes by increments.
    """

    def __init__(
        self, penalty: HasWeight, gamma: float, *, max_weight: float | None = None, min_weight: float = 0.0
    ) -> None:
        check_penalty(penalty, "weight")
        self.penalty = penalty
        self.gamma = check_number("gamma", gamma, exclusive=True)
        self.max_weight = None if max_weight is None else check_number("max_weight", max_weight)
        self.min_weight = check_number("min_weight", min_weight)
        if self.max_weight is not None and self.min_weight > self.max_weight:
            raise ValueError(
                f"Expected argument `min_weight` to be at most `max_weight`={max_weight!r}, but got {min_weight!r}."
            )

    def step(self) -> None:
        """Multiply the weight once; it never crosses a limit, and one that is beyond a limit already stays."""
        weight = self.penalty.weight
        moved = self.gamma * weight
        if self.gamma > 1 and self.max_weight is not None:
            moved = max(weight, min(moved, self.max_weight))
        if self.gamma < 1:
            moved = min(weight, max(moved, self.min_weight))
        self.penalty.weight = moved

    def state_dict(self) -> dict[str, Any]:
        """Return the schedule's state: the current weight."""
        return {"weight": self.penalty.weight}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state, and the penalty's weight with it.

        Args:
            state: From :meth:`state_dict`.

        Raises:
            TypeError, ValueError: If ``state`` is not a state of this class.
        """
        check_state_keys(state, {"weight"}, type(self).__name__)
        self.penalty.weight = state["weight"]


class RadiusDecay:
    """Shrink the radius by a factor once per epoch: ε ← γ ε.

    A radius under the dtype's floor is the limit ε → 0 and is computed as such.

    Args:
        penalty: Its ``radius`` is set by :meth:`step`.
        gamma: γ in (0, 1].
        min_radius: The radius never falls below, ≥ 0, in raw units.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a number is out of range, or the penalty's radius is None.

    References:
        Report, Algorithms 3 and 4 (γ = 0.9).
    """

    def __init__(self, penalty: HasRadius, gamma: float = 0.9, *, min_radius: float = 0.0) -> None:
        check_penalty(penalty, "radius")
        self.gamma = check_number("gamma", gamma, exclusive=True)
        if self.gamma > 1:
            raise ValueError(f"Expected argument `gamma` to be in (0, 1], but got {gamma!r}.")
        self.min_radius = check_number("min_radius", min_radius)
        if penalty.radius is None:
            raise ValueError(
                "Expected a penalty with a `radius`, but its radius is None: its pairs start from different data "
                "points, at no fixed distance. Construct it with `radius=`, or leave the schedule out."
            )
        self.penalty = penalty

    def step(self) -> None:
        """Shrink the radius once; one that is already below ``min_radius`` stays."""
        radius = self.penalty.radius
        if radius is not None:  # set to None meanwhile: pairs of different data points
            self.penalty.radius = min(radius, max(self.min_radius, self.gamma * radius))

    def state_dict(self) -> dict[str, Any]:
        """Return the schedule's state: the current radius."""
        return {"radius": self.penalty.radius}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state, and the penalty's radius with it.

        Args:
            state: From :meth:`state_dict`.

        Raises:
            TypeError, ValueError: If ``state`` is not a state of this class.
        """
        check_state_keys(state, {"radius"}, type(self).__name__, may_be_none="radius")
        self.penalty.radius = state["radius"]
