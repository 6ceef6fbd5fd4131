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

MAKERS: dict[str, Any] = {  # in the order in which they are made, and stepped
    "weight_gamma": ExponentialWeight,
    "radius_decay": RadiusDecay,
    "discrepancy": DiscrepancyWeight,
    "weight_warmup": lambda penalty, steps: WeightWarmup(penalty, int(steps) if steps % 1 == 0 else steps),
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
        self._penalty, self._options = penalty, options
        self._made = {name: self._make(name) for name in MAKERS if name in options}
        self._stepped = Stepped(self._made.values(), penalty, accuracy="top1")
        self._ended: dict[str, Any] | None = None  # the metrics of the epoch that ended, until the next one begins
        self._trained = False  # in the present epoch

    def _make(self, name: str) -> Any:
        return MAKERS[name](self._penalty, *self._options[name])

    def after_update(self) -> None:
        """Step what counts optimizer steps."""
        self._stepped.after_update()

    def after_validation(self, metrics: dict[str, Any]) -> None:
        """Note that an epoch ended. Where a moving average is validated too, the last metrics count.

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
        self._ended = {"top1": float(metrics["top1"])} if "top1" in metrics else {}

    def before_epoch(self) -> None:
        """Note that an epoch ended, if any has been trained since, also where there was no validation."""
        if self._trained and self._ended is None:
            self._ended = {}

    def before_training(self) -> None:
        """Step what counts epochs, if one ended since."""
        ended, self._ended, self._trained = self._ended, None, True
        if ended is not None:
            self._stepped.after_epoch(ended["top1"] / 100 if "top1" in ended else None)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of each schedule."""
        made = {name: schedule.state_dict() for name, schedule in self._made.items()}
        return {"ended": self._ended, "trained": self._trained, **made}

    def load_state_dict(self, state: dict[str, Any], chosen: dict[str, float]) -> None:
        """Restore the schedules that were there, but for those of an attribute that goes on with another value.

        Args:
            state: From :meth:`state_dict`, empty where there was none.
            chosen: Values of such attributes, "weight" or "radius": their schedules begin anew, from these.
        """
        self._ended, self._trained = state.get("ended"), state.get("trained", False)
        for attribute, value in chosen.items():
            setattr(self._penalty, attribute, value)
        for name in self._made:
            if ("radius" if name == "radius_decay" else "weight") in chosen:
                self._made[name] = self._make(name)
            elif name in state:
                self._made[name].load_state_dict(state[name])
        self._stepped = Stepped(self._made.values(), self._penalty, accuracy="top1")
        left = state.get("weight_warmup")
        if left is not None and "weight_warmup" not in self._made and "weight" not in chosen:
            self._penalty.weight *= left["full"] / left["last"] if left["last"] else 1.0
