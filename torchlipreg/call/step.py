"""One call of a penalty: draw pairs, move them uphill, reduce their quotients."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchlipreg.call.climbing import ascent_rule, climb
from torchlipreg.call.first_batch import first_look
from torchlipreg.call.held_model import HeldModel
from torchlipreg.call.looks import Looks
from torchlipreg.call.methods import Batch, LocalPairs, PairMethod, PersistentPairs, that_count
from torchlipreg.call.reduction import by_row, reduce
from torchlipreg.call.region import Region
from torchlipreg.call.settings import Settings
from torchlipreg.call.state import Carried, PenaltyState
from torchlipreg.geometry.derivative import Function
from torchlipreg.geometry.quotient import PairQuotient, Resolution
from torchlipreg.inspection.reuse import LoopOutputs, OutputReuse
from torchlipreg.inspection.seen import Seen
from torchlipreg.model.function import FixedFunction
from torchlipreg.model.parts.side import Kwargs, SideRows, split_side
from torchlipreg.outputs import is_own, select


class Outcome(NamedTuple):
    """What a call has come to.

    Attributes:
        value: reduceᵢ qᵢ^exponent over all ranks, 0-dim, with a gradient to the parameters.
        estimate: The largest quotient, 0-dim.
        remember: Notes moved pairs in the state: called last of all, so that a call that fails on its way has not been.
            None where nothing has moved.
    """

    value: Tensor
    estimate: Tensor
    remember: Callable[[], None] | None = None


@dataclass
class Step:
    """One call of a penalty.

    Nothing here reads a tensor's value, except in the first call and when the model's training flags change.

    Attributes:
        settings: Of the penalty.
        radius: ε as the user has it; None for pairs of different data points.
        state: Of the penalty.
        reuse: Whether the loop's outputs may stand for f(x).
        looks: What it sees of the model beside its work.
        rng: The penalty's own generator.
        update: Move the pairs; otherwise evaluate the last call's, or fresh ones that are not kept.
    """

    settings: Settings
    radius: float | None
    state: PenaltyState
    reuse: OutputReuse
    looks: Looks
    rng: torch.Generator
    update: bool

    def __call__(self, model: Callable[..., Any], x: Tensor, outputs: Any, kwargs: Kwargs) -> Outcome:
        """Draw pairs, move them and reduce their quotients; the state does not change yet.

        Args:
            model: The model being trained.
            x: The batch as the loop has it, shape (N, *).
            outputs: What the training loop's ``model(x)`` returned, or None.
            kwargs: What else the model takes by name, or None.

        Returns:
            The value and the estimate, and what is to be noted.
        """
        points, (side, rest) = self.settings.raw(x), split_side(kwargs, x.shape[0], self.state.names_of_rows)
        held = HeldModel(model, rest, len(x), self.settings, self.state, self.looks.inspector, self.rng)
        seen = held.seen(points, side, self.radius)
        region = self._region(held, seen, points, side)
        method, fixed = self._method(region), held.fixed(seen, eager=region.resolution.limit)
        if not self.update and (last := self.state.on(points.device)) is not None:
            with fixed as f:
                return self._as_before(f, region, last, points, side)
        look = partial(self._looked_at, x, outputs, side, kwargs, region)
        loop = look(held.fixed(seen)) if self.settings.choose else None
        batch = method.batch(points, side, outputs, self.rng)  # the user's `choose` sees the model as the loop has it
        with fixed as f:
            self.looks.before(f, seen, points)
            loop = loop or look(nullcontext(f))
            rule = ascent_rule(region, batch.x)
            carried = method.start(batch, self.state, rule, self.rng)
            q = self._quotient(f, region, carried, self._at_anchor(f, region, carried, batch, loop, seen))
            if self.update:
                carried = climb(carried, q, rule, region, batch.x)
                q = self._as_met(f, q, carried, region)
            quotients = q(carried.pairs, batch.valid)
            if self.update:
                self.looks(model, f, q, carried, batch.valid, quotients, whole=seen.whole)
        remember = partial(method.remember, self.state, carried, batch, by_row(quotients.detach()))
        return Outcome(*reduce(quotients, batch.valid, self.settings), remember if self.update else None)

    def _region(self, held: HeldModel, seen: Seen, points: Tensor, side: SideRows) -> Region:
        region = Region(self.settings, self._resolution(seen, points))
        if region.resolution.limit:
            held.look_at_derivative(seen, points, side)
        return region

    def _method(self, region: Region) -> PairMethod:
        if self.settings.persistent:
            return PersistentPairs(region)
        return LocalPairs(region, is_first=self.state.floor is None)

    def _quotient(self, f: FixedFunction, region: Region, carried: Carried, fx: Tensor | None) -> PairQuotient:
        norms = self.settings.input_norm, self.settings.output_norm
        return PairQuotient(f.with_rows(carried.side), *norms, region.resolution, fx)

    def _as_met(self, f: FixedFunction, q: PairQuotient, carried: Carried, region: Region) -> PairQuotient:
        """Return the quotient with f(x) computed anew where a module has run whose like in the loop had Dropout on."""
        if not (f.met_inexact and region.shares_fx):
            return q
        return replace(q, fx=self._at(q.f, carried.pairs.x, None))

    def _resolution(self, seen: Seen, points: Tensor) -> Resolution:
        """Return ε and the floor, on which the first batch decides: its values are looked at, and may be refused."""
        error = None if seen.error is None else ValueError(seen.error)
        if self.state.floor is not None:
            if error is not None:
                raise error
            return self._resolved(Resolution(self.radius, self.state.floor))
        return first_look(self.settings, self.radius, seen.dtype, points, error, self.state.warn_once)

    def _resolved(self, resolution: Resolution) -> Resolution:
        """Return a resolution; one that has shrunk to the limit stays above it where f(x) is a target."""
        if not (self.settings.one_sided and resolution.limit):
            return resolution
        self.state.warn_once(
            f"`radius`={self.radius:g} has fallen under what the model's dtype resolves for such inputs, "
            f"{resolution.floor:.2g}, where with `one_sided`=True it is held: a derivative has no f(x) to hold as a "
            "target.",
            key="held",
        )
        return resolution._replace(radius=resolution.floor)

    def _as_before(
        self, f: FixedFunction, region: Region, previous: Carried, points: Tensor, side: SideRows
    ) -> Outcome:
        """Return the outcome at the last call's pairs, of those that count."""
        valid = None if self.state.valid is None else self.state.valid.to(points.device)
        fx = self._follow(f, previous, points, side, valid if self.settings.anchored else None)
        fx = self._at(f.with_rows(previous.side), previous.pairs.x, fx) if region.shares_fx else None
        q = self._quotient(f, region, previous, fx)
        return Outcome(*reduce(q(previous.pairs, valid), valid, self.settings))

    def _looked_at(
        self,
        x: Tensor,
        outputs: Any,
        side: SideRows,
        kwargs: Kwargs,
        region: Region,
        fixed: AbstractContextManager[FixedFunction],
    ) -> LoopOutputs | None:
        """Return the loop's outputs, their shape checked, if this call looks at them; ``output`` may run modules."""
        if outputs is None or not (region.shares_fx or self.settings.choose):
            return None
        # As from embeddings, or from what makes a condition: f(x) would pull at it, with f(x′) holding still.
        pulls = x.requires_grad or any((kwargs or {})[name].requires_grad for name in side)
        output = self.settings.output
        if is_own(output):
            return LoopOutputs.select(x, outputs, side, lambda y, x: select(y, output, len(x))[0], pulls=pulls)
        with fixed as f:
            return LoopOutputs.select(x, outputs, side, f.selected, pulls=pulls)

    def _at_anchor(
        self,
        f: FixedFunction,
        region: Region,
        carried: Carried,
        batch: Batch,
        loop: LoopOutputs | None,
        seen: Seen,
    ) -> Tensor | None:
        """Return f(x) where x stays on the data point: the loop's outputs if they serve, else by a forward."""
        fx = self._follow(f, carried, batch.x, batch.side, batch.valid)
        if not region.shares_fx:
            return None
        pulled = not self.settings.one_sided
        lent = loop if seen.graph else None  # else f(x) alone would be pulled at
        unlike = seen.drifts or self.settings.sees_rounding
        if lent is not None and self.reuse.allowed(f, lent, needs_gradient=pulled, drifts=unlike):
            fx = lent.y if batch.rows is None else lent.y[batch.rows]
            fx = fx if len(fx) else lent.y.new_zeros(len(batch.x), *lent.y.shape[1:])
        return self._at(f.with_rows(carried.side), carried.pairs.x, fx)

    def _at(self, f: Function, x: Tensor, fx: Tensor | None) -> Tensor:
        """Return f(x) at points that stay, by a forward unless it is known: a mere target has no gradient."""
        target = self.settings.one_sided
        if fx is None:
            with torch.set_grad_enabled(torch.is_grad_enabled() and not target):
                fx = f(x)
        return fx.detach() if target else fx

    def _follow(
        self, f: FixedFunction, carried: Carried, points: Tensor, side: SideRows, valid: Tensor | None
    ) -> Tensor | None:
        """Let train-mode BatchNorm take its statistics over data points that count, and return f(x) where x stays."""
        if not f.follows:
            return None
        x, side = (carried.pairs.x, carried.side) if self.settings.anchored or len(points) == 0 else (points, side)
        x, side = that_count(x, side, valid, len(carried.pairs.x))
        return f.with_rows(side).follow_statistics(x)
