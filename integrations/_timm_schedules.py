"""The launcher's schedules of weight and radius: which there are, and when they step."""

from __future__ import annotations

from typing import Any

from torchlipreg import DiscrepancyWeight, ExponentialWeight, LipschitzPenalty, RadiusDecay, WeightWarmup
from torchlipreg.integrations._stepped import Stepped

# The options: what each does, and the names of its numbers.
SCHEDULES = {
    "weight_warmup": ("bring the weight in, from a tenth to all of it, over so many optimizer steps", ("STEPS",)),
    "weight_gamma": ("multiply the weight by this after each epoch", ("GAMMA",)),
    "radius_decay": ("multiply the radius by this after each epoch", ("GAMMA",)),
    "discrepancy": (
        "after each epoch raise the weight by INCREMENT if the validation accuracy, in [0, 1], is above TARGET, lower "
        "it otherwise",
        ("TARGET", "INCREMENT"),
    ),
}


class Schedules:
    """The schedules of a run, made from the launcher's options.

    Args:
        penalty: Whose weight and radius they set.
        options: Numbers for some of :data:`SCHEDULES`.

    Raises:
        TypeError, ValueError: If a number is out of range.
    """

    def __init__(self, penalty: LipschitzPenalty, options: dict[str, list[float]]) -> None:
        makers: dict[str, Any] = {
            "weight_gamma": ExponentialWeight,
            "radius_decay": RadiusDecay,
            "discrepancy": DiscrepancyWeight,
            "weight_warmup": lambda penalty, steps: WeightWarmup(penalty, int(steps) if steps % 1 == 0 else steps),
        }
        self._made = {name: make(penalty, *options[name]) for name, make in makers.items() if name in options}
        self._stepped = Stepped(self._made.values(), penalty, accuracy="top1")
        self._ended: dict[str, Any] | None = None  # the metrics of the epoch that ended, until the next one begins

    def after_update(self) -> None:
        """Step what counts optimizer steps."""
        self._stepped.after_update()

    def after_validation(self, metrics: dict[str, Any]) -> None:
        """Note that an epoch ended. Where a moving average is validated too, the last metrics count."""
        self._ended = {"top1": float(metrics["top1"])} if "top1" in metrics else {}

    def before_training(self) -> None:
        """Step what counts epochs, if one ended since."""
        ended, self._ended = self._ended, None
        if ended is not None:
            self._stepped.after_epoch(ended["top1"] / 100 if "top1" in ended else None)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of each schedule."""
        return {"ended": self._ended, **{name: schedule.state_dict() for name, schedule in self._made.items()}}

    def load_state_dict(self, state: dict[str, Any], changed: list[str]) -> None:
        """Restore the schedules that were there, but for those of an attribute that goes on with another value.

        Args:
            state: From :meth:`state_dict`.
            changed: The attributes, "weight" or "radius".
        """
        self._ended = state["ended"]
        for name, schedule in self._made.items():
            attribute = "radius" if name == "radius_decay" else "weight"
            if name in state and attribute not in changed:
                schedule.load_state_dict(state[name])
