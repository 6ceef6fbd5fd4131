"""Settings: everything about a penalty that never changes, checked once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from torchlipreg.checks import check_bounds, check_choice, check_count, check_norm, check_number

METHODS = ("max", "sum", "tv", "ptv")
ASCENTS = ("power", "sgd", "nesterov", "adam")
STEP_SIZES = {"sgd": 0.01, "nesterov": 0.01, "adam": 0.03}
NUM_PAIRS = 64


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The constructor's arguments of :class:`torchlipreg.LipschitzPenalty`, with defaults filled in.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range; the message names it.
    """

    method: str
    num_pairs: int | None
    choose: Callable[[Any, int], Tensor] | None
    input_norm: float
    output_norm: float
    exponent: int
    scale: float
    ascent: str | None
    ascent_steps: int
    step_size: float | None
    momentum: float
    anchored: bool
    bounds: tuple[float, float] | None
    noise: float
    interval: int
    output: Callable[[Any], Any] | None
    seed: int

    def __post_init__(self) -> None:
        check_choice("method", self.method, METHODS)
        check_norm("input_norm", self.input_norm)
        check_norm("output_norm", self.output_norm)
        check_choice("exponent", self.exponent, (1, 2))
        self._fill("scale", check_number("scale", self.scale, exclusive=True))
        if self.ascent is None:
            self._fill("ascent", "sgd" if self.persistent else "power")
        check_choice("ascent", self.ascent, ASCENTS)
        if self.num_pairs is None and self.persistent:
            self._fill("num_pairs", NUM_PAIRS)
        for name in ("num_pairs", "ascent_steps", "interval"):
            if name != "num_pairs" or self.num_pairs is not None:
                self._fill(name, check_count(name, getattr(self, name)))
        for name in ("choose", "output"):
            if not (getattr(self, name) is None or callable(getattr(self, name))):
                raise TypeError(f"Expected argument `{name}` to be callable or None, but got {getattr(self, name)!r}.")
        if self.choose is not None:
            self._check_choose()
        self._check_step_size()
        self._fill("momentum", check_number("momentum", self.momentum))
        if self.momentum >= 1:
            raise ValueError(f"Expected argument `momentum` to be in [0, 1), but got {self.momentum!r}.")
        if not isinstance(self.anchored, bool):
            raise TypeError(f"Expected argument `anchored` to be True or False, but got {self.anchored!r}.")
        self._fill("anchored", self.anchored and not self.persistent)  # X_lip has no data points to stay on
        self._fill("bounds", check_bounds(self.bounds))
        self._fill("noise", check_number("noise", self.noise))
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise ValueError(f"Expected argument `seed` to be an integer >= 0, but got {self.seed!r}.")

    @property
    def persistent(self) -> bool:
        """Say whether the pairs live from step to step (max, sum) or are drawn anew in each (tv, ptv)."""
        return self.method in ("max", "sum")

    def _check_choose(self) -> None:
        if self.persistent:
            raise ValueError(
                f"Expected no argument `choose` with `method`={self.method!r}, whose pairs live from batch to batch. "
                "Leave it out, or take method 'tv' or 'ptv'."
            )
        if self.num_pairs is None:
            raise ValueError("Expected argument `num_pairs`, how many points to `choose` of each batch, but got None.")

    def _check_step_size(self) -> None:
        if self.ascent == "power":
            if self.step_size is not None:
                raise ValueError(
                    f"Expected no argument `step_size` with `ascent`='power', whose steps have no size, but got "
                    f"{self.step_size!r}. Leave it out, or choose `ascent`='sgd', 'nesterov' or 'adam'."
                )
        elif self.step_size is None:
            self._fill("step_size", STEP_SIZES[str(self.ascent)])
        else:
            self._fill("step_size", check_number("step_size", self.step_size, exclusive=True))

    def _fill(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)
