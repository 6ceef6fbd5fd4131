"""The two kinds of method: persistent pairs (Algorithm 1: max, sum) and local pairs (Algorithms 3, 4: ptv, tv).

Both have the same three verbs: ``batch``, which points of the loop's batch are used; ``start``, the pairs before the
ascent; ``keep``, what the state remembers of them after it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchlipreg.call.region import Region
from torchlipreg.call.settings import Settings
from torchlipreg.call.state import PenaltyState
from torchlipreg.checks import check_row_numbers
from torchlipreg.geometry.ascent import Memory, Rule, where_memory
from torchlipreg.geometry.pairs import PairSet, all_finite, draw_rows


class Batch(NamedTuple):
    """The data points that a call uses.

    Attributes:
        x: Points, shape (N, *), N ≥ 1.
        finite: Which of the loop's points were finite, bool.
        valid: Which of the pairs count, shape (N,), bool; None for all.
        rows: Which rows of the loop's batch they are, shape (N,); None for all of them.
    """

    x: Tensor
    finite: Tensor
    valid: Tensor | None = None
    rows: Tensor | None = None


@dataclass(frozen=True)
class PersistentPairs:
    """X_lip, drawn once from data, kept and moved from call to call: Algorithm 1."""

    region: Region

    def batch(self, points: Tensor, outputs: Any, rng: torch.Generator) -> Batch:
        """Offer all points, from which pairs may start."""
        return Batch(points, all_finite(points))

    def start(self, batch: Batch, state: PenaltyState, rule: Rule, rng: torch.Generator) -> tuple[PairSet, Memory]:
        """Return X_lip with its stuck pairs drawn anew; in the first call all of it.

        Args:
            batch: Fresh pairs of points that are not finite are not used.
            state: The last call's pairs, their memory, and which of them are stuck.
            rule: The ascent rule, which gives fresh pairs their memory.
            rng: The only source of randomness.

        Returns:
            Pairs and the rule's memory.

        Raises:
            ValueError: If the batch is too small for X_lip to start from it.
        """
        previous = state.on(batch.x.device)
        if previous is None:
            check_first_batch(self.region.settings, self.region.resolution.radius, batch.x)
            pairs = self._draw(batch.x, self.region.settings.num_pairs or 0, rng)
            return pairs, rule.start(pairs)
        if state.stuck is None or len(batch.x) < points_needed(self.region.resolution.radius):
            return previous
        pairs, memory = previous
        fresh = self._draw(batch.x, len(state.stuck), rng)  # as many as there are: other ranks may have saved them
        keep = ~state.stuck.to(batch.x.device) | ~fresh.isfinite()
        return pairs.where(keep, fresh), where_memory(keep, memory, rule.start(fresh))

    def _draw(self, x: Tensor, count: int, rng: torch.Generator) -> PairSet:
        rows = draw_rows(x, count, rng)
        if self.region.resolution.radius is None:
            return self.region.draw_between(x, rows, rng)
        return self.region.draw_around(x[rows], rng)

    def keep(self, state: PenaltyState, pairs: PairSet, memory: Memory, batch: Batch, q: Tensor) -> None:
        """Remember X_lip, and which pairs are stuck; where the batch was not finite, X_lip as it was."""
        stuck, finite = self.region.is_stuck(pairs, q), batch.finite.all()
        previous = state.on(pairs.x.device)
        if previous is not None and previous[0].x.shape == pairs.x.shape:
            sound = finite.expand(len(pairs.x))
            pairs, memory = pairs.where(sound, previous[0]), where_memory(sound, memory, previous[1])
        state.advance(pairs, memory, self.region.resolution.floor, finite, stuck=stuck)


@dataclass(frozen=True)
class LocalPairs:
    """Pairs that start anew in each call around points of the batch: Algorithms 3 (ptv) and 4 (tv)."""

    region: Region

    def batch(self, points: Tensor, outputs: Any, rng: torch.Generator) -> Batch:
        """Draw or choose the points that are used; rows that are not finite do not count.

        Args:
            points: The loop's batch, shape (N, *).
            outputs: What the training loop's ``model(x)`` returned, or None.
            rng: The only source of randomness.

        Returns:
            The points.

        Raises:
            TypeError: If ``settings.choose`` returns no row numbers.
        """
        rows = self._rows(points, outputs, rng)
        x = points if rows is None else points[rows]
        finite = valid = all_finite(x)
        x = finite_copy(x)
        if len(x) == 0:  # a rank without data takes part in each forward and collective all the same
            x, valid = x.new_zeros(1, *x.shape[1:]), finite.new_zeros(1)
        return Batch(x, finite, valid, rows)

    def _rows(self, points: Tensor, outputs: Any, rng: torch.Generator) -> Tensor | None:
        choose, count = self.region.settings.choose, self.region.settings.num_pairs
        if count is None or count >= len(points):
            return None
        if choose is None:
            return torch.randperm(len(points), generator=rng, device=points.device)[:count]
        return check_row_numbers(choose(outputs, count))

    def start(self, batch: Batch, state: PenaltyState, rule: Rule, rng: torch.Generator) -> tuple[PairSet, Memory]:
        """Return a fresh pair around each point, whatever there was before."""
        pairs = self.region.draw_around(batch.x, rng)
        return pairs, rule.start(pairs)

    def keep(self, state: PenaltyState, pairs: PairSet, memory: Memory, batch: Batch, q: Tensor) -> None:
        """Remember the pairs for ``update=False``; the next call draws others."""
        state.advance(pairs, {}, self.region.resolution.floor, batch.finite.all(), valid=batch.valid)


def points_needed(radius: float | None) -> int:
    """Return how many data points a pair starts from."""
    return 2 if radius is None else 1


def check_first_batch(settings: Settings, radius: float | None, x: Tensor) -> None:
    """Raise ValueError if X_lip is to start from a batch with too few points."""
    if settings.persistent and len(x) < points_needed(radius):
        raise ValueError(
            f"Expected the first `x`, from which the pairs of method {settings.method!r} start, to hold at least "
            f"{points_needed(radius)} data points with `radius`={radius}, but got {len(x)}. Give a larger batch"
            + (", or a `radius`." if radius is None else ".")
        )


def finite_copy(x: Tensor) -> Tensor:
    """Return x with zeros for NaN and infinity."""
    return x.nan_to_num(0.0, 0.0, 0.0)
