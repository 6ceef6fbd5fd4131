"""The launcher's schedules of weight and radius: which there are, and when they step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torchlipreg import DiscrepancyWeight, ExponentialWeight, LipschitzPenalty, RadiusDecay, WeightWarmup
from torchlipreg.integrations._stepped import Stepped


class Option(NamedTuple):
    """A schedule that the launcher offers.

    Attributes:
        description: What it does.
        numbers: Names of the numbers it takes.
        sets: The attribute of the penalty, "weight" or "radius".
        make: The schedule from the penalty and the numbers.
    """

    description: str
    numbers: tuple[str, ...]
    sets: str
    make: Callable[..., Any]


OPTIONS = {  # in the order in which they are made, and stepped
    "weight_gamma": Option("multiply the weight by this after each epoch", ("GAMMA",), "weight", ExponentialWeight),
    "radius_decay": Option("multiply the radius by this after each epoch", ("GAMMA",), "radius", RadiusDecay),
    "discrepancy": Option(
        "after each epoch that was validated raise the weight by INCREMENT if the validation accuracy, in [0, 1], is "
        "above TARGET, lower it otherwise",
        ("TARGET", "INCREMENT"),
        "weight",
        DiscrepancyWeight,
    ),
    "weight_warmup": Option(
        "bring the weight in, from a tenth to all of it, over so many optimizer steps",
        ("STEPS",),
        "weight",
        lambda penalty, steps: WeightWarmup(penalty, int(steps) if steps % 1 == 0 else steps),
    ),
}


class Schedules:
    """The schedules of a run, made from the launcher's options.

    Args:
        penalty: Whose weight and radius they set.
        numbers: For some of :data:`OPTIONS`.

    Raises:
        TypeError, ValueError: If a number is out of range.
    """

    def __init__(self, penalty: LipschitzPenalty, numbers: dict[str, list[float]]) -> None:
        self._penalty, self._numbers = penalty, numbers
        self._made = {name: self._make(name) for name in OPTIONS if name in numbers}
        self._stepped = Stepped(self._made.values(), penalty, accuracy="top1")
        self._loader_tells = False  # when an epoch begins; else a validation ends one
        self._trained = self._ended = False  # in the present epoch; that one has ended
        self._top1: float | None = None  # of the last validation in it, in per cent

    def _make(self, name: str) -> Any:
        return OPTIONS[name].make(self._penalty, *self._numbers[name])

    def after_update(self) -> None:
        """Step what counts optimizer steps."""
        self._stepped.after_update()

    def after_validation(self, metrics: dict[str, Any]) -> None:
        """Note an accuracy. Where a moving average is validated too, the last metrics count.

        Args:
            metrics: What was found.

        Raises:
            ValueError: If there is no accuracy among them for the discrepancy principle.
        """
        if "top1" not in metrics and self._stepped.follows_accuracy:
            raise ValueError(
                f"Expected an accuracy, `top1`, for --lip-discrepancy, but this task measures {', '.join(metrics)}. "
                "Leave the option out."
            )
        self._top1 = float(metrics["top1"]) if "top1" in metrics else None
        self._ended = self._ended or (self._trained and not self._loader_tells)

    def before_epoch(self) -> None:
        """Note that the training set is gone through anew."""
        self._loader_tells, self._ended = True, self._ended or self._trained

    def before_training(self) -> None:
        """Step what counts epochs, if one ended since."""
        if self._ended:
            self._end_epoch(self._stepped)
        self._trained = True

    def _end_epoch(self, stepped: Stepped) -> None:
        accuracy, self._top1 = self._top1, None
        self._trained = self._ended = False
        stepped.after_epoch(None if accuracy is None else accuracy / 100)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of each schedule, and where the epoch stands."""
        made = {name: schedule.state_dict() for name, schedule in self._made.items()}
        return {"trained": self._trained, "ended": self._ended, "top1": self._top1, **made}

    def load_state_dict(self, state: dict[str, Any], chosen: dict[str, float]) -> None:
        """Restore the schedules that were there, but for those of an attribute that goes on with another value.

        Args:
            state: From :meth:`state_dict`, empty where there was none.
            chosen: Values of such attributes, "weight" or "radius": their schedules begin anew, from these.
        """
        self._trained, self._ended = state.get("trained", False), state.get("ended", False)
        self._top1 = state.get("top1")
        stay = {name: schedule for name, schedule in self._made.items() if OPTIONS[name].sets not in chosen}
        for name, schedule in stay.items():
            if name in state:
                schedule.load_state_dict(state[name])
        if chosen and self._trained:  # what begins anew does not end the last run's epoch
            self._end_epoch(Stepped(stay.values(), self._penalty, accuracy="top1"))
        left = state.get("weight_warmup")
        if left is not None and left["last"] and "weight_warmup" not in self._made:  # in whose middle the weight is low
            self._penalty.weight = left["weight"] * left["full"] / left["last"]
        for attribute, value in chosen.items():
            setattr(self._penalty, attribute, value)
        self._made = {name: stay.get(name) or self._make(name) for name in self._made}
        self._stepped = Stepped(self._made.values(), self._penalty, accuracy="top1")
