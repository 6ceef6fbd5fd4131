"""Settings: everything about a penalty that never changes, checked once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from torchlipreg.checks import (
    check_bounds,
    check_choice,
    check_count,
    check_flag,
    check_function,
    check_norm,
    check_normalization,
    check_number,
)
from torchlipreg.geometry.units import RAW, Units
from torchlipreg.tensor_checks import in_raw_units

Method = Literal["max", "sum", "tv", "ptv"]
Ascent = Literal["power", "sgd", "nesterov", "adam"]
Exponent = Literal[1, 2]
Stochastic = Literal["refuse", "same"]

STEP_SIZES = {"sgd": 0.01, "nesterov": 0.01, "adam": 0.03}
NUM_PAIRS = 64
RADIUS = 8 / 255  # of tv and ptv: the field's budget for images in [0, 1]
FAR_SCALES = {"max": 0.16, "sum": 0.25}  # with pairs of different data points; measured, docs/settings.md


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The constructor's arguments of :class:`torchlipreg.LipschitzPenalty`, with defaults filled in.

    ``radius`` is the one that was given to the constructor; the penalty's own may be changed later.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range; the message names it.
    """

    method: str
    radius: float | None
    input_norm: float
    output_norm: float
    exponent: int
    scale: float | None
    normalization: Any
    num_pairs: int | None
    choose: Callable[[Any, int], Tensor] | None
    ascent: str | None
    ascent_steps: int
    step_size: float | None
    momentum: float
    anchored: bool
    one_sided: bool
    bounds: tuple[float, float] | None
    noise: float
    interval: int
    output: Callable[[Any], Any] | None
    stochastic: str
    seed: int

    def __post_init__(self) -> None:
        for name, choices in (("method", Method), ("exponent", Exponent), ("stochastic", Stochastic)):
            check_choice(name, getattr(self, name), get_args(choices))
        check_norm("input_norm", self.input_norm)
        check_norm("output_norm", self.output_norm)
        if self.radius is None and not self.persistent:
            self._fill("radius", RADIUS)
        self._fill("radius", self.check_radius(self.radius))
        self._fill("scale", check_number("scale", self._scale(), exclusive=True))
        units = check_normalization(self.normalization)
        self._fill("normalization", None if units is None else tuple(units))  # plain values, which go into a state
        if self.ascent is None:
            self._fill("ascent", "sgd" if self.persistent else "power")
        check_choice("ascent", self.ascent, get_args(Ascent))
        if self.num_pairs is None and self.persistent:
            self._fill("num_pairs", NUM_PAIRS)
        if self.num_pairs is not None:
            self._fill("num_pairs", check_count("num_pairs", self.num_pairs))
        for name in ("ascent_steps", "interval"):
            self._fill(name, check_count(name, getattr(self, name)))
        for name in ("choose", "output"):
            check_function(name, getattr(self, name))
        self._check_choose()
        self._check_step_size()
        self._fill("momentum", check_number("momentum", self.momentum))
        if self.momentum >= 1:
            raise ValueError(f"Expected argument `momentum` to be in [0, 1), but got {self.momentum!r}.")
        self._check_sides()
        self._fill("bounds", check_bounds(self.bounds, units))
        self._fill("noise", check_number("noise", self.noise))
        self._fill("seed", check_count("seed", self.seed, low=0))

    @cached_property
    def persistent(self) -> bool:
        """Say whether the pairs live from step to step (max, sum) or are drawn anew in each (tv, ptv)."""
        return self.method in ("max", "sum")

    @cached_property
    def aligned(self) -> bool:
        """Say whether f is only asked for points in the rows of the loop's batch."""
        return self.anchored and self.num_pairs is None

    @cached_property
    def units(self) -> Units | None:
        """The loop's normalisation, None where inputs are raw, as (0, 1) says, too."""
        return None if self.normalization in (None, RAW) else Units(*self.normalization)

    def raw(self, x: Tensor) -> Tensor:
        """Return a batch in raw units, at least float32, without a graph."""
        return in_raw_units(x if x.dtype in (torch.float32, torch.float64) else x.float(), self.units)

    @cached_property
    def sees_rounding(self) -> bool:
        """Say whether rounding that an f(x) from elsewhere leaves where outputs do not move is pulled at.

        The gradient of the ℓ1 norm is of size one there, and that of each row's own norm; with f(x) in the graph
        x and x′ cancel, as a mere target it does not.
        """
        return self.one_sided and 1 in (self.output_norm, self.exponent)

    @cached_property
    def movement(self) -> float:
        """What a quotient's power is multiplied by to become that of a movement, (scale · q)^exponent."""
        return float((self.scale or 1.0) ** self.exponent)

    def arguments(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def check_radius(self, radius: Any) -> float | None:
        """Return ``radius`` as a float or None.

        Args:
            radius: The penalty's, as the constructor was given it or as it is set later.

        Returns:
            ε ≥ 0, or None for pairs of different data points.

        Raises:
            TypeError: If it is no number.
            ValueError: If the method has no such pairs.
        """
        if radius is None:
            if self.persistent:
                return None
            raise ValueError(
                f"Expected argument `radius` to be a number with `method`={self.method!r}, but got None. Leave it out "
                "for 8/255, or take method 'max' or 'sum' for pairs of different data points."
            )
        number = check_number("radius", radius)
        if self.one_sided and number == 0:
            raise ValueError(
                "Expected `radius` > 0 with `one_sided`=True, but got 0: a derivative has no f(x) to hold as a target."
            )
        return number

    def _scale(self) -> float:
        if self.scale is not None:
            return self.scale
        return FAR_SCALES[self.method] if self.radius is None else self.radius or 1.0

    def _check_sides(self) -> None:
        check_flag("anchored", self.anchored)
        check_flag("one_sided", self.one_sided)
        if self.one_sided and (self.persistent or not self.anchored):
            raise ValueError(
                "Expected `one_sided`=True with `method`='tv' or 'ptv' and `anchored`=True, whose x is a data point "
                f"with f(x) as its target, but got `method`={self.method!r}, `anchored`={self.anchored!r}."
            )
        self._fill("anchored", self.anchored and not self.persistent)  # X_lip has no data points to stay on

    def _check_choose(self) -> None:
        if self.choose is None:
            return
        if self.persistent:
            raise ValueError(
                f"Expected no argument `choose` with `method`={self.method!r}, whose pairs live from batch to batch. "
                "Leave it out, or take method 'tv' or 'ptv'."
            )
        if self.num_pairs is None:
            raise ValueError(
                "Expected argument `num_pairs`, how many points to `choose` of each batch, but got None. Give it, say "
                "`num_pairs`=32."
            )

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
