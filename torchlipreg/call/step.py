"""One call of a penalty: draw pairs, move them uphill, reduce their quotients."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchlipreg.call.anchor import Anchor
from torchlipreg.call.climbing import ascent_rule, climb
from torchlipreg.call.held_model import HeldModel
from torchlipreg.call.looks import Looks
from torchlipreg.call.methods import LocalPairs, PairMethod, PersistentPairs
from torchlipreg.call.reduction import reduce
from torchlipreg.call.region import Region
from torchlipreg.call.resolution import resolution_of
from torchlipreg.call.settings import Settings
from torchlipreg.call.state import Carried, PenaltyState
from torchlipreg.geometry.quotient import by_row
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

    Nothing here reads a tensor's value, except in the first call of a model, or in the limit, when training flags
    change, and in every 64th call where the forward has written into a tensor.

    Attributes:
        settings: Of the penalty.
        state: Of the penalty.
        reuse: Whether the loop's outputs may stand for f(x).
        looks: What it sees of the model beside its work.
        rng: The penalty's own generator.
        update: Move the pairs; otherwise evaluate the last call's, or fresh ones that are not kept.
    """

    settings: Settings
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
        held = HeldModel(model, points, side, rest, self.settings, self.state, self.looks.inspector, self.rng)
        seen = held.seen()
        region = self._region(held, seen)
        method, fixed = self._method(region), held.fixed(seen, eager=region.resolution.limit)
        if not self.update and (last := self.state.on(points.device)) is not None:
            with fixed as f:
                return self._as_before(Anchor(f, region, self.reuse), last, points, side)
        from_loop = partial(self._from_loop, x, outputs, side, kwargs, region)
        loop = from_loop(held.fixed(seen)) if self.settings.choose else None
        batch = method.batch(points, side, outputs, self.rng)  # the user's `choose` sees the model as the loop has it
        with fixed as f:
            self.looks.before(f, seen, points)
            anchor, loop = Anchor(f, region, self.reuse), loop or from_loop(nullcontext(f))
            rule = ascent_rule(region, batch.x)
            carried = method.start(batch, self.state, rule, self.rng)
            q = anchor.quotient(carried, anchor.known(carried, batch, loop, seen))
            if self.update:
                carried = climb(carried, q, rule, region, batch.x)
                q = anchor.quotient(carried) if f.state.met_inexact else q  # one whose like in the loop had Dropout on
            quotients = q(carried.pairs, batch.valid)
            if self.update:
                self.looks(model, f, q, carried, batch.valid, quotients, whole=seen.whole)
        remember = partial(method.remember, self.state, carried, batch, by_row(quotients.detach()))
        return Outcome(*reduce(quotients, batch.valid, self.settings), remember if self.update else None)

    def _region(self, held: HeldModel, seen: Seen) -> Region:
        region = Region(self.settings, resolution_of(self.settings, self.state, seen, held.points))
        if region.resolution.limit:
            held.look_at_derivative(seen)
        return region

    def _method(self, region: Region) -> PairMethod:
        if self.settings.persistent:
            return PersistentPairs(region)
        return LocalPairs(region, is_first=self.state.floor is None)

    def _as_before(self, anchor: Anchor, previous: Carried, points: Tensor, side: SideRows) -> Outcome:
        """Return the outcome at the last call's pairs, of those that count."""
        valid = None if self.state.valid is None else self.state.valid.to(points.device)
        known = anchor.follow(previous, points, side, valid if self.settings.anchored else None)
        q = anchor.quotient(previous, known)
        return Outcome(*reduce(q(previous.pairs, valid), valid, self.settings))

    def _from_loop(
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
