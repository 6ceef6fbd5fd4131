"""The two kinds of method: persistent pairs (Algorithm 1: max, sum) and local pairs (Algorithms 3, 4: ptv, tv)."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from torchlipreg.call.region import Region
from torchlipreg.call.resolution import check_first_batch, points_needed
from torchlipreg.call.state import Carried, PenaltyState
from torchlipreg.geometry.ascent import Rule
from torchlipreg.geometry.pairs import all_finite, at_least_one, draw_rows, finite_copy
from torchlipreg.model.parts.side import SideRows, check_side, take_rows
from torchlipreg.tensor_checks import check_row_numbers


class Batch(NamedTuple):
    """The data points that a call uses.

    Attributes:
        x: Points, shape (N, *); N ≥ 1 for local methods.
        side: What else the model takes, with a row for each of them.
        finite: Which of these points were finite in the loop's batch, bool.
        valid: Which of the pairs count, shape (N,), bool; None for all.
        rows: Which rows of the loop's batch they are, shape (N,); None for all of them.
    """

    x: Tensor
    side: SideRows
    finite: Tensor
    valid: Tensor | None = None
    rows: Tensor | None = None


class PairMethod(Protocol):
    """The three verbs that both kinds have."""

    def batch(self, points: Tensor, side: SideRows, outputs: Any, rng: torch.Generator) -> Batch:
        """Return which points of the loop's batch are used."""

    def start(self, batch: Batch, state: PenaltyState, rule: Rule, rng: torch.Generator) -> Carried:
        """Return the pairs before the ascent."""

    def remember(self, state: PenaltyState, carried: Carried, batch: Batch, q: Tensor) -> None:
        """Note in the state what is kept of the pairs after it."""


class PersistentPairs:
    """X_lip, drawn once from data, kept and moved from call to call: Algorithm 1."""

    def __init__(self, region: Region) -> None:
        self.region = region

    def batch(self, points: Tensor, side: SideRows, outputs: Any, rng: torch.Generator) -> Batch:
        """Offer all points, from which pairs may start."""
        return Batch(points, side, all_finite(points))

    def start(self, batch: Batch, state: PenaltyState, rule: Rule, rng: torch.Generator) -> Carried:
        """Return X_lip with its stuck pairs drawn anew; in the first call all of it.

        Args:
            batch: Fresh pairs of points that are not finite are not used.
            state: The last call's pairs, their memory, and which of them are stuck.
            rule: The ascent rule, which gives fresh pairs their memory.
            rng: The only source of randomness.

        Returns:
            Pairs, the rule's memory and the side inputs of the data points that the pairs started from.

        Raises:
            ValueError: If the batch is too small for X_lip to start from it, or has other side inputs.
        """
        previous = state.on(batch.x.device)
        if previous is None:
            check_first_batch(self.region.settings, self.region.resolution.radius, batch.x)
            return self._draw(batch, self.region.settings.num_pairs or 0, rule, rng)
        check_side(batch.side, previous.side)
        if state.stuck is None or len(batch.x) < points_needed(self.region.resolution.radius):
            return previous
        fresh = self._draw(batch, len(state.stuck), rule, rng)  # as many as there are: other ranks may have saved them
        keep = ~state.stuck.to(batch.x.device) | ~fresh.pairs.isfinite()
        return previous.where(keep, fresh)

    def _draw(self, batch: Batch, count: int, rule: Rule, rng: torch.Generator) -> Carried:
        rows = draw_rows(batch.x, count, rng)
        if self.region.resolution.radius is None:
            pairs = self.region.draw_between(batch.x, rows, rng)
        else:
            pairs = self.region.draw_around(batch.x[rows], rng)
        return Carried(pairs, rule.start(pairs), take_rows(batch.side, rows))

    def remember(self, state: PenaltyState, carried: Carried, batch: Batch, q: Tensor) -> None:
        """Remember X_lip, and which pairs are stuck; where the batch was not finite, X_lip as it was."""
        stuck, finite = self.region.is_stuck(carried.pairs, q), batch.finite.all()
        previous = state.on(q.device)
        if previous is not None and previous.pairs.x.shape == carried.pairs.x.shape:
            # All as it was, as NaN in a batch tells of a training that fails: statistics, and with them f, may be NaN.
            carried = carried.where(finite.expand(len(q)), previous)
            stuck = torch.where(finite, stuck, stuck if state.stuck is None else state.stuck.to(q.device))
        state.advance(carried, self.region.resolution.floor, finite, stuck=stuck)


class LocalPairs:
    """Pairs that start anew in each call around points of the batch: Algorithms 3 (ptv) and 4 (tv)."""

    def __init__(self, region: Region, *, is_first: bool) -> None:
        self.region, self.is_first = region, is_first

    def batch(self, points: Tensor, side: SideRows, outputs: Any, rng: torch.Generator) -> Batch:
        """Draw or choose the points that are used; rows that are not finite do not count.

        Args:
            points: The loop's batch, shape (N, *).
            side: What else the model takes, with a row for each of them.
            outputs: What the training loop's ``model(x)`` returned, or None.
            rng: The only source of randomness.

        Returns:
            The points.

        Raises:
            TypeError: If ``settings.choose`` returns no row numbers.
            ValueError: If it returns some that the batch does not have: looked at in the first call only.
        """
        rows = self._rows(points, outputs, rng)
        x = points if rows is None else points[rows]
        finite = valid = all_finite(x)
        if len(x) == 0:  # a rank without data takes part in each forward and collective all the same
            valid = finite.new_zeros(1)
        return Batch(at_least_one(finite_copy(x)), take_rows(side, rows), finite, valid, rows)

    def _rows(self, points: Tensor, outputs: Any, rng: torch.Generator) -> Tensor | None:
        choose, count = self.region.settings.choose, self.region.settings.num_pairs
        if count is None or count >= len(points):
            return None
        if choose is None:
            return torch.randperm(len(points), generator=rng, device=points.device)[:count]
        return check_row_numbers(choose(outputs, count), len(points), reads=self.is_first)

    def start(self, batch: Batch, state: PenaltyState, rule: Rule, rng: torch.Generator) -> Carried:
        """Return a fresh pair around each point, whatever there was before."""
        pairs = self.region.draw_around(batch.x, rng)
        return Carried(pairs, rule.start(pairs), batch.side)

    def remember(self, state: PenaltyState, carried: Carried, batch: Batch, q: Tensor) -> None:
        """Remember the pairs for ``update=False``; the next call draws others."""
        floor, side = self.region.resolution.floor, carried.side
        if batch.rows is None:  # the loop's own tensors, which it may write anew for the next batch
            side = {name: value.clone() for name, value in side.items()}
        state.advance(carried._replace(memory={}, side=side), floor, batch.finite.all(), valid=batch.valid)


def that_count(x: Tensor, side: SideRows, valid: Tensor | None, number: int) -> tuple[Tensor, SideRows]:
    """Return the first data points, those that count once more, in turn, in the place of others.

    Args:
        x: Points, shape (N, *).
        side: What else the model takes, with a row for each of them.
        valid: Which of them count, shape (N,), bool; None for those that are finite.
        number: How many there may be.

    Returns:
        Points, shape (min(N, number), *), and their side inputs; zeros where none counts.
    """
    x = x[:number]
    valid = all_finite(x) if valid is None else valid[:number]
    own = torch.arange(len(valid), device=valid.device)
    those = (~valid).to(torch.uint8).argsort(stable=True)  # first
    taken = (own - valid.cumsum(0)) % valid.sum().clamp(min=1)  # read on no host
    rows = torch.where(valid, own, those[taken])
    return finite_copy(x[rows]), take_rows(side, rows)
