"""The schedules of a penalty that a trainer steps, for Lightning's callback and transformers' Trainer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torchlipreg import DiscrepancyWeight, LipschitzPenalty, WeightWarmup


class Stepped:
    """Schedules, and the number of epochs after which they were stepped: a resumed run may skip the end of one.

    Args:
        schedules: Of the penalty; one alone will do.
        penalty: Theirs.
        accuracy: The name of the metric for a ``DiscrepancyWeight``.

    Raises:
        TypeError: If one of the schedules is none.
        ValueError: If one is of another penalty, or needs an accuracy that has no name.
    """

    def __init__(self, schedules: Any, penalty: LipschitzPenalty, accuracy: str | None) -> None:
        self.schedules = _check_schedules(schedules, penalty)
        self._of_updates = [s for s in self.schedules if isinstance(s, WeightWarmup)]
        self._of_accuracy = [s for s in self.schedules if isinstance(s, DiscrepancyWeight)]
        self._of_epochs = [s for s in self.schedules if not isinstance(s, (WeightWarmup, DiscrepancyWeight))]
        self.follows_accuracy, self.follows_epochs = bool(self._of_accuracy), bool(self._of_epochs)
        if accuracy is None and self.follows_accuracy:
            raise ValueError(
                "Expected argument `accuracy` to be the name of a logged metric, for the DiscrepancyWeight in "
                "`schedules`, but got None."
            )
        self.epochs: int | None = None

    def begin(self, epochs: int) -> None:
        """Go on counting epochs where the trainer does."""
        self.epochs = epochs if self.epochs is None else min(epochs, self.epochs)

    def after_update(self) -> None:
        """Step what follows the optimizer."""
        for schedule in self._of_updates:
            schedule.step()

    def after_epochs(self, epochs: int, accuracy: float | None = None) -> bool:
        """Step what follows epochs, once for each number of them; what follows an accuracy, if there is one.

        Args:
            epochs: That ended so far.
            accuracy: Of the last one, if known.

        Returns:
            Whether these epochs are new.
        """
        if self.epochs is not None and self.epochs >= epochs:
            return False
        self.epochs = epochs
        self.after_epoch(accuracy)
        return True

    def after_epoch(self, accuracy: float | None = None) -> None:
        """Step what follows epochs, after one; what follows an accuracy, if there is one."""
        for schedule in self._of_epochs:
            schedule.step()
        if accuracy is not None:
            self.after_accuracy(accuracy)

    def after_accuracy(self, accuracy: float) -> None:
        """Step what follows an accuracy."""
        for schedule in self._of_accuracy:
            schedule.step(accuracy)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the schedules."""
        return {"schedules": [schedule.state_dict() for schedule in self.schedules], "epochs": self.epochs}

    def check_state(self, state: dict[str, Any]) -> None:
        """Refuse a state of other schedules, before anything is changed.

        Args:
            state: From :meth:`state_dict`.

        Raises:
            ValueError: If their number is another.
        """
        if len(state["schedules"]) != len(self.schedules):
            raise ValueError(
                f"Expected argument `schedules` to hold {len(state['schedules'])} schedules, as when the checkpoint "
                f"was saved, but got {len(self.schedules)}. Construct them as they were."
            )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state, and the penalty's weight and radius with it.

        Args:
            state: From :meth:`state_dict`.
        """
        self.check_state(state)
        for schedule, saved in zip(self.schedules, state["schedules"], strict=True):
            schedule.load_state_dict(saved)
        self.epochs = state["epochs"]


def _check_schedules(schedules: Any, penalty: LipschitzPenalty) -> list[Any]:
    found = list(schedules) if isinstance(schedules, Iterable) else [schedules]
    for schedule in found:
        missing = [n for n in ("step", "state_dict", "load_state_dict") if not callable(getattr(schedule, n, None))]
        if missing:
            raise TypeError(
                "Expected argument `schedules` to hold schedules, such as RadiusDecay, but got "
                f"{type(schedule).__name__}, which has no {', '.join(missing)}."
            )
        if getattr(schedule, "penalty", penalty) is not penalty:
            raise ValueError(
                f"Expected argument `schedules` to hold schedules of `penalty`, but the {type(schedule).__name__} is "
                "another penalty's."
            )
    return found
