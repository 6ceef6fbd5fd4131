"""Search: power steps towards the largest difference quotient around some points, free of rounding."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from torchlipreg.geometry.ascent import ascend
from torchlipreg.geometry.norms import rescale, row_norm
from torchlipreg.geometry.pairs import PairSet, draw_in_ball, draw_partners, draw_rows
from torchlipreg.geometry.quotient import PairQuotient, Resolution, by_row, distance_floor
from torchlipreg.geometry.rules import Power
from torchlipreg.geometry.units import Units, at_least_single
from torchlipreg.inspection.inspector import Inspector
from torchlipreg.inspection.operations import Observer, observing
from torchlipreg.inspection.seen import HIDDEN_INPUT, SURROGATE, Seen
from torchlipreg.inspection.surrogate import InFloat64, has_surrogate
from torchlipreg.model.fixed import fixed_function
from torchlipreg.model.function import FixedFunction
from torchlipreg.model.parts.modules import compute_dtype
from torchlipreg.notice import warn_user
from torchlipreg.tensor_checks import check_values, in_raw_units

ROUNDING = 16  # machine epsilons of an output that a forward may be off, where it cannot be had in float64
ROWS = 32  # at which a model is asked for the same values twice
BORNE_OUT = 8  # pairs, those with the largest quotients, on whose way from point to point slopes are taken
CUT = 1e-9  # relative: less is no reason to ask whether slopes are to be trusted
PLACES = 17  # on that way
STEP = 1.25  # a quotient that is so many times the slopes is a step between the places, or rounding for a large part
SHRINK = 0.01  # from the distance of two data points to this part of it, geometrically over the steps


@dataclass(frozen=True)
class Search:
    """Power steps towards the largest quotient, by the arguments of ``lipschitz_lower_bound``, checked."""

    model: Callable[[Tensor], Any]
    radius: float | None
    input_norm: float
    output_norm: float
    steps: int
    bounds: tuple[float, float] | None
    units: Units | None
    output: Callable[[Any], Any] | None

    def largest(self, x: Tensor, rng: torch.Generator, best: Tensor | None) -> Tensor:
        """Return the largest quotient found around data points, or elsewhere before, 0-dim.

        Args:
            x: Points in the loop's units, shape (N, *).
            rng: Of the starting pairs.
            best: Found before; None to look at the model first, and refuse it if it is random.

        Raises:
            ValueError: If the points are not finite or outside of the bounds, or the model is random.
        """
        x = in_raw_units(at_least_single(x), self.units, "inputs")
        check_values("inputs", x, self.bounds)
        typical = float(row_norm(x, self.input_norm).mean())
        resolution = Resolution(self.radius, distance_floor(compute_dtype(self.model, x), typical))
        start, project = self._start(x, resolution, rng), partial(self._project, resolution=resolution)
        with self._fixed(eager=resolution.limit) as f:
            if best is None:
                look_at(self.model, f, x)
                if resolution.limit:
                    check_derivative(self._in_float64, x, bounds=self.bounds)
            with torch.no_grad():
                fx = None if resolution.limit else f(start.x)
            q = PairQuotient(f, self.input_norm, self.output_norm, resolution, fx)
            height, rule = Best(q, start), Power(self.input_norm, anchored=True)
            last, _ = ascend(start, {}, rule, height, steps=self.steps, anchored=True, project=project)
            with torch.no_grad():
                height(last)
        # Of both: what is best before rounding is taken off need not be so after it.
        best = x.new_zeros(()) if best is None else best
        for pairs in (height.pairs, last):
            best = torch.maximum(best, self._verified(pairs, q, best))
        return best

    def _fixed(self, *, eager: bool, double: bool = False) -> AbstractContextManager[FixedFunction]:
        return fixed_function(self.model, self.output, eager=eager, units=self.units, meet=True, double=double)

    def _in_float64(self) -> AbstractContextManager[FixedFunction]:
        return self._fixed(eager=True, double=True)

    def _start(self, x: Tensor, resolution: Resolution, rng: torch.Generator) -> PairSet:
        if self.radius is None:
            return draw_partners(x, draw_rows(x, len(x), rng), rng)
        distance = resolution.unit if resolution.limit else self.radius
        pairs = draw_in_ball(x, distance, self.input_norm, rng, on_sphere=True)
        if resolution.limit or self.bounds is None:
            return pairs
        return pairs.turned_inside(self.bounds, self.input_norm)

    def _project(self, pairs: PairSet, *, resolution: Resolution) -> PairSet:
        """Bring moved pairs to one length (limit), or closer by one step (no radius) and inside the bounds."""
        direction = pairs.x_prime - pairs.x
        if resolution.limit:
            return PairSet(pairs.x, pairs.x + rescale(direction, resolution.unit, self.input_norm))
        shrink = SHRINK ** (1 / self.steps) if self.radius is None else 1.0
        return PairSet(pairs.x, pairs.x + shrink * direction).clamp(self.bounds, anchored=True)

    def _verified(self, pairs: PairSet, q: PairQuotient, best: Tensor) -> Tensor:
        """Return the largest quotient, 0-dim, free of rounding: in float64, or less what rounding may add.

        One that is no larger than the ``best`` so far may not be.
        """
        limit = q.resolution.limit
        q = replace(q, fx=None, resolution=q.resolution._replace(floor=math.inf if limit else 0.0))
        with torch.no_grad():
            if pairs.x.device.type != "mps":  # which has no float64
                # A model may refuse float64 in its own way.
                with contextlib.suppress(Exception), self._fixed(eager=limit, double=True) as f:
                    wide = pairs.map(Tensor.double)
                    quotients, error = less_rounding(wide, replace(q, f=f.uncompiled()), f)
                    if limit or quotients.amax() <= best:
                        return quotients.amax()
                    return self._borne_out(wide, quotients, error, q)
            with self._fixed(eager=limit) as f:
                return less_rounding(pairs, replace(q, f=f.uncompiled()), f)[0].amax()

    def _borne_out(self, pairs: PairSet, quotients: Tensor, error: float, q: PairQuotient) -> Tensor:
        """Return the largest quotient, 0-dim, or what the slopes on the way between its points leave of it.

        Large numbers that cancel inside of a model leave their rounding in differences; derivatives are off by their
        relative ``error`` alone.
        """
        rows = by_row(quotients).topk(min(BORNE_OUT, len(quotients))).indices
        pairs, quotients = pairs.map(lambda z: z[rows]), quotients[rows]
        with contextlib.suppress(Exception):  # a layer may have no derivative in forward mode
            with self._in_float64() as f:
                slopes = replace(q, f=f).steepest(pairs, PLACES) * (1 - error)
            found = torch.where(quotients > STEP * slopes, quotients, torch.minimum(quotients, slopes)).amax()
            if found > (1 - CUT) * quotients.amax() or not has_surrogate(self._in_float64, pairs.x, bounds=self.bounds):
                return found
        return quotients.amax()


class Best:
    """The objective ‖f(x′) − f(x)‖ of an ascent, which remembers the best pairs that it was asked for.

    Attributes:
        pairs: Those whose quotients were the largest, shape (N, *).
    """

    def __init__(self, q: PairQuotient, start: PairSet) -> None:
        self.pairs, self._q, self._largest = start, q, start.x.new_zeros(len(start.x))

    def __call__(self, pairs: PairSet) -> tuple[Tensor, Tensor]:
        """Return differences and their weights: see :meth:`PairQuotient.height`."""
        difference, u = self._q.height(pairs)
        pairs = pairs.map(torch.detach)
        quotients = self._q.of(difference.detach(), pairs)
        if quotients.dim() == 2:  # each position is an output: climb where the largest is
            there = torch.zeros_like(quotients).scatter_(1, quotients.argmax(1, keepdim=True), 1.0)
            quotients, u = quotients.amax(1), u * there.unsqueeze(2)
        self.pairs = self.pairs.where(self._largest > quotients, pairs)
        self._largest = torch.maximum(self._largest, quotients)
        return difference, u


def less_rounding(pairs: PairSet, q: PairQuotient, f: FixedFunction) -> tuple[Tensor, float]:
    """Return quotients less what rounding may add to them, shape (N,), or (N, positions), and how much that is.

    Args:
        pairs: Shape (N, *).
        q: The quotient, of f without ``torch.compile``.
        f: The model as a fixed function.

    Returns:
        The quotients, and the error of an output relative to its size.
    """
    observer = Observer()
    with observing(f, observer):
        at_x = q.f(pairs.x)
        at_x_prime = at_x if q.resolution.limit else q.f(pairs.x_prime)
    dtype = observer.dtype or at_x.dtype  # less precision inside, which a wider output hides
    error = 0.0 if dtype == torch.float64 and q.resolution.limit else ROUNDING * torch.finfo(dtype).eps
    if q.resolution.limit:  # no difference of rounded values: a derivative is off in proportion to itself
        return q.of(q.difference(pairs) * max(0.0, 1 - error), pairs), error
    difference = (at_x_prime - at_x).abs() - error * (at_x.abs() + at_x_prime.abs())
    return q.of(difference.clamp_min(0), pairs), error


def check_derivative(
    in_float64: InFloat64, x: Tensor, *, bounds: tuple[float, float] | None = None, reverse: bool = False
) -> None:
    """Refuse a model whose derivative is not that of its values; arguments as of :func:`has_surrogate`.

    Raises:
        ValueError: If it is not.
    """
    if has_surrogate(in_float64, x, bounds=bounds, reverse=reverse):
        raise ValueError(SURROGATE)


def look_at(model: Callable[..., Any], f: FixedFunction, x: Tensor, *, exact: bool = False) -> Seen:
    """Look at a model before it is measured: refuse one that is random, and warn of what the user should know.

    Args:
        model: As the user gave it.
        f: The same as a fixed function.
        x: Points, of which some are used, shape (N, *).
        exact: The measure is of the gradient itself: refuse a model that hides it, too.

    Returns:
        What was seen.

    Raises:
        ValueError: If two forwards at the same points differ, or the gradient is hidden.
    """
    seen = Inspector().look(model, f, x[:ROWS], follow=False)
    if seen.error is not None:
        raise ValueError(seen.error)
    if exact and seen.no_path:
        raise ValueError(HIDDEN_INPUT)
    for caution in seen.cautions().values():
        warn_user(caution)
    return seen
