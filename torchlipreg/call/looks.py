"""Looks: what a call sees of the model beside its work, now and then, seldom waiting for the device."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from torchlipreg.call.later_batches import LEFT_BOUNDS, LaterBatches
from torchlipreg.call.reduction import reduce_here
from torchlipreg.call.settings import Settings
from torchlipreg.call.state import Carried, PenaltyState
from torchlipreg.call.watch import ROWS, Watch
from torchlipreg.geometry.norms import row_norm
from torchlipreg.geometry.pairs import PairSet
from torchlipreg.geometry.quotient import PairQuotient, by_row
from torchlipreg.inspection.closeness import without_masks
from torchlipreg.inspection.inspector import Inspector
from torchlipreg.inspection.seen import RERUN, Seen
from torchlipreg.model.function import FixedFunction
from torchlipreg.model.parts.side import take_rows

OUTSIDE = (
    "The penalty is not finite, though the outputs at the data are: near the data `model` is NaN, infinite or nearly "
    "so. If it is not defined outside of the data's range, as with square roots and logarithms, give that range as "
    "`bounds`; if it masks outputs, mask with -1e9."
)
STEEP = (
    "The penalty is not finite, though the outputs at the data are: with this `radius` it is a derivative, and that of "
    "`model` is infinite or NaN there, as a square root's or a norm's is at 0. Give a larger `radius`, or keep the "
    "model off such points, as by sqrt(x + 1e-6)."
)


@dataclass
class Looks:
    """Is the model random, does the penalty weigh as much as it should, and does it see more than rounding?

    Attributes:
        settings: Of the penalty.
        state: Of the penalty, which warns once.
        inspector: What a forward shows of a model.
        watch: Sees the penalty's gradient now and then.
        batches: Sees whether later ones lie inside of ``bounds``.
    """

    settings: Settings
    state: PenaltyState
    inspector: Inspector
    watch: Watch
    batches: LaterBatches

    def before(self, f: FixedFunction, seen: Seen, points: Tensor) -> None:
        """Warn before the work of what may make it fail, or be of other points."""
        bounds = self.settings.bounds
        if bounds is not None and self.batches.left(points, bounds):
            self.state.warn_once(LEFT_BOUNDS.format(bounds), key="bounds")
        if seen.reruns and f.state.found.inexact:
            self.state.warn_once(RERUN)

    def __call__(
        self,
        model: Callable[..., Any],
        f: FixedFunction,
        q: PairQuotient,
        carried: Carried,
        valid: Tensor | None,
        quotients: Tensor,
        *,
        whole: bool,
    ) -> None:
        """Look, in those calls in which it is due.

        Args:
            model: As the user gave it.
            f: The same as a fixed function, without side inputs.
            q: The quotient that the call computes.
            carried: Pairs with their side inputs.
            valid: Which of the pairs count, shape (N,), bool; None for all.
            quotients: Of the pairs, shape (N, *).
            whole: The model takes all rows of the batch, or none.
        """
        if (caution := f.state.norms.caution()) is not None:
            self.state.warn_once(caution, key="norms")
        if self.state.floor is None and not bool(quotients.detach().isfinite().all()):
            self.state.warn_once(STEEP if q.resolution.limit else OUTSIDE)
        count = len(quotients) if whole else min(ROWS, len(quotients))
        if self.inspector.due():
            some = f.with_rows(take_rows(carried.side, slice(count)))
            if (caution := self.inspector.look_again(model, some, carried.pairs.x[:count].detach())) is not None:
                self.state.warn_once(caution, key="written")
        if self.watch.due():
            self._watch(count, f, q, carried, valid, quotients)

    def _watch(
        self, count: int, f: FixedFunction, q: PairQuotient, carried: Carried, valid: Tensor | None, quotients: Tensor
    ) -> None:
        """Let the watch see the value's gradient at so many pairs (max: the largest), in a graph of its own."""
        if count < 2 or f.state.is_sharded:
            return
        largest = self.settings.method == "max"
        rows = by_row(quotients.detach()).topk(count).indices if largest else slice(count)
        pairs = carried.pairs.map(lambda z: z[rows])
        with f.eagerly():
            f = f.with_rows(take_rows(carried.side, rows))
            fx = f(pairs.x)
            q = replace(q, f=f, fx=fx.detach() if self.settings.one_sided else fx)
            some = q(pairs, None if valid is None else valid[rows])
        self.watch.look(reduce_here(some, self.settings), fx, rounding(q, pairs, some, fx))


def rounding(q: PairQuotient, pairs: PairSet, quotients: Tensor, fx: Tensor) -> Tensor:
    """Return ε_machine max |f(x)| / ‖f(x′) − f(x)‖ of the middle pair, 0-dim: how much of it may be rounding."""
    if q.resolution.limit:  # a derivative, which is not a difference of rounded values
        return fx.new_zeros(())
    moved = by_row(quotients.detach()) * pairs.distance(q.input_norm).detach()
    return (torch.finfo(fx.dtype).eps * row_norm(without_masks(fx.detach()), math.inf) / moved).nanmedian()
