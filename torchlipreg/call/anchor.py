"""Anchor: f(x) of the points that stay, and the statistics of BatchNorm in train mode, which follow them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchlipreg.call.methods import Batch, that_count
from torchlipreg.call.region import Region
from torchlipreg.call.state import Carried
from torchlipreg.geometry.quotient import PairQuotient
from torchlipreg.inspection.reuse import LoopOutputs, OutputReuse
from torchlipreg.inspection.seen import Seen
from torchlipreg.model.function import FixedFunction
from torchlipreg.model.parts.side import SideRows


@dataclass(frozen=True)
class Anchor:
    """Where f(x) of a call comes from.

    Attributes:
        f: The model as a fixed function.
        region: Where pairs may go: whether x is a data point that stays.
        reuse: Whether the loop's outputs may stand for f(x).
    """

    f: FixedFunction
    region: Region
    reuse: OutputReuse

    def quotient(self, carried: Carried, known: Tensor | None = None) -> PairQuotient:
        """Return the quotient of pairs; where x stays with f(x), by a forward unless it is known.

        Args:
            carried: The pairs.
            known: f(x), shape (N, *).
        """
        settings, f = self.region.settings, self.f.with_rows(carried.side)
        fx = self._fx(f, carried.pairs.x, known) if self.region.shares_fx else None
        return PairQuotient(f, settings.input_norm, settings.output_norm, self.region.resolution, fx)

    def _fx(self, f: FixedFunction, x: Tensor, known: Tensor | None) -> Tensor:
        target = self.region.settings.one_sided  # which has no gradient
        if known is None:
            with torch.set_grad_enabled(torch.is_grad_enabled() and not target):
                known = f(x)
        return known.detach() if target else known

    def known(self, carried: Carried, batch: Batch, loop: LoopOutputs | None, seen: Seen) -> Tensor | None:
        """Return what is known of f(x) without a forward of its own: the loop's outputs, where they serve."""
        known = self.follow(carried, batch.x, batch.side, batch.valid)
        if loop is None or not (self.region.shares_fx and seen.graph):  # without a graph f(x) alone would be pulled at
            return known
        settings = self.region.settings
        pulled = settings.one_sided or (loop.y.requires_grad and not loop.pulls)  # as f(x) is to be
        may_serve = pulled and not (seen.drifts or settings.sees_rounding)
        if not self.reuse.allowed(self.f, loop, may_serve=may_serve, target=settings.one_sided):
            return known
        fx = loop.y if batch.rows is None else loop.y[batch.rows]
        return fx if len(fx) else loop.y.new_zeros(len(batch.x), *loop.y.shape[1:])

    def follow(self, carried: Carried, points: Tensor, side: SideRows, valid: Tensor | None) -> Tensor | None:
        """Let train-mode BatchNorm take its statistics over data points, as many as there are pairs; return f there.

        Args:
            carried: The pairs, whose x are the data points where they stay.
            points: Elsewhere the batch's, shape (N, *).
            side: What else the model takes, with a row for each of those.
            valid: Which data points count, shape (N,), bool; None to leave out those that are not finite.

        Returns:
            f(x), or None where no statistics follow; in the place of rows that do not count, others' once more.
        """
        if not self.f.follows:
            return None
        stays = self.region.settings.anchored or len(points) == 0
        x, side = (carried.pairs.x, carried.side) if stays else (points, side)
        x, side = that_count(x, side, valid, len(carried.pairs.x))
        return self.f.with_rows(side).follow_statistics(x)
