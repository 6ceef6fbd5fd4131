"""WeightWarmup: the weight comes in over some steps, whoever else sets it, and whatever is loaded meanwhile."""

from __future__ import annotations

from typing import Any

from torchlipreg.checks import check_count, check_number, check_state_keys
from torchlipreg.schedules import HasWeight, check_penalty


class WeightWarmup:
    """Bring the weight in: from a tenth of it to all of it, in equal parts over some steps.

    A strong penalty that starts all at once in mid-training is the known way to collapse, a network that becomes
    constant; this is the cure, in one line before the loop and one in it::

        warmup = WeightWarmup(penalty, steps=500)
        for x, y in loader:
            ...
            optimizer.step()
            warmup.step()

    It chains with the other schedules, as torch's learning-rate schedulers do: they see and set the weight of the
    moment, and whatever factor they change it by stays. (So an increment, or a limit, of :class:`DiscrepancyWeight`
    counts for more while the weight is low.) While the weight is 0, as that one can hold it, the steps are not counted:
    the weight comes in when it is back. Make this schedule before such a one, which else puts all of the weight back
    for a step. After the last step the weight is exactly the penalty's own, if nobody else has changed it. Save its
    state with the penalty's: where the penalty's alone is loaded, the weight in it is taken for all of the weight.

    Args:
        penalty: Its ``weight`` is set to a tenth now, and by :meth:`step`.
        steps: How many, ≥ 1.

    Raises:
        TypeError: If ``steps`` is not an integer, or ``penalty`` no penalty.
        ValueError: If ``steps`` is less than 1.

    References:
        Not in the report, section 3.2 of which waits with the penalty until the model is accurate.
    """

    START = 0.1

    def __init__(self, penalty: HasWeight, steps: int) -> None:
        check_penalty(penalty, "weight")
        self.penalty = penalty
        self.steps = check_count("steps", steps)
        self._count, self._full = 0, penalty.weight
        self._resumed: float | None = None  # the weight that belongs to the state of this schedule that was loaded
        self._load = self._latest()
        self._set()

    def _factor(self) -> float:
        return self.START + (1 - self.START) * self._count / self.steps if self._count < self.steps else 1.0

    def _set(self) -> None:
        self.penalty.weight = self._last = self._factor() * self._full

    def step(self) -> None:
        """Raise the weight by one part, unless it is 0."""
        self._look_for_a_load()
        weight = self.penalty.weight
        if weight == 0:
            return
        if weight != self._last or self._full == 0:  # changed, by a load, another schedule or by hand
            self._full = weight / (self._factor() if self._full else 1.0)
        self._count = min(self._count + 1, self.steps)
        self._set()

    def _latest(self) -> Any:
        return getattr(self.penalty, "last_load", None)

    def _look_for_a_load(self) -> None:
        """Take what is there for all of the weight where it was loaded, and not with a state of this schedule."""
        load, resumed = self._latest(), self._resumed
        if load is not None and load is not self._load and load.weight != resumed:
            self._full = 0.0
        self._load, self._resumed = load, None

    def state_dict(self) -> dict[str, Any]:
        """Return the schedule's state, the current weight and ``steps`` included."""
        return {
            "weight": self.penalty.weight,
            "count": self._count,
            "full": self._full,
            "last": self._last,
            "steps": self.steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state, and the penalty's weight and ``steps`` with it: a warm-up that has ended has ended.

        Args:
            state: From :meth:`state_dict`.

        Raises:
            TypeError, ValueError: If ``state`` is not a state of this class.
        """
        check_state_keys(state, {"weight", "count", "full", "last", "steps"}, type(self).__name__)
        count, steps = check_count("count", state["count"], low=0), check_count("steps", state["steps"])
        full, last = (check_number(name, state[name]) for name in ("full", "last"))
        self.penalty.weight, self._count, self.steps = state["weight"], count, steps
        self._full, self._last, self._resumed = full, last, state["weight"]
        self._load = self._latest()
