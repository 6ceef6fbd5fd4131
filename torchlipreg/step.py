"""One call of a penalty: draw pairs, move them uphill, reduce their quotients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from torchlipreg.ascent import Objective, ascend
from torchlipreg.checks import check_values
from torchlipreg.distributed import largest_or_raise, reduce_max, reduce_mean
from torchlipreg.frozen import FixedFunction, fixed_function
from torchlipreg.methods import ascent_rule, check_size, choose_points, is_stuck, projection, start
from torchlipreg.modules import compute_dtype
from torchlipreg.norms import batch_norm, norm_gradient
from torchlipreg.objective import pair_differences, pair_quotients
from torchlipreg.pairs import PairSet, all_finite
from torchlipreg.quotient import distance_floor
from torchlipreg.reuse import OutputReuse, in_half_precision, select_outputs
from torchlipreg.settings import Settings
from torchlipreg.state import PenaltyState


@dataclass(frozen=True)
class Step:
    """One call of a penalty.

    Nothing here reads a tensor's value, except in the first call and when the model's training flags change.

    Attributes:
        settings: Of the penalty.
        radius: ε as the user has it; None for pairs of different data points.
        state: Of the penalty; changed last, after everything that may fail.
        reuse: Whether the loop's outputs may stand for f(x).
        generator: The penalty's own.
        moves: Move the pairs; otherwise evaluate the last call's, or fresh ones that are not kept.
    """

    settings: Settings
    radius: float | None
    state: PenaltyState
    reuse: OutputReuse
    generator: torch.Generator
    moves: bool

    def __call__(self, model: Callable[[Tensor], Any], x: Tensor, outputs: Any) -> Tensor:
        """Return reduceᵢ qᵢ^power over all ranks, 0-dim, and note the outcome in the state.

        Args:
            model: The model being trained.
            x: The batch, shape (N, *).
            outputs: What the training loop's ``model(x)`` returned, or None.

        Returns:
            The value, with a gradient to the parameters.
        """
        settings, state = self.settings, self.state
        points = x.detach() if x.dtype in (torch.float32, torch.float64) else x.detach().float()
        floor = self._first_look(model, points) if state.floor is None else state.floor
        limit = self.radius is not None and self.radius < floor
        radius = 0.0 if limit else self.radius
        quotients = partial(
            pair_quotients,
            input_norm=settings.input_norm,
            output_norm=settings.output_norm,
            floor=floor,
            limit=limit,
        )
        known = state.on(x.device) if settings.persistent or not self.moves else None

        with fixed_function(model, settings.output, eager=limit) as f:
            if known is not None and not self.moves:
                counts = None if state.counts is None else state.counts.to(x.device)
                self._follow(f, known[0], points)
                return self._reduce(quotients(f, known[0], None, counts), counts)
            anchored = settings.fixed_x and not limit
            looks = outputs is not None and (anchored or settings.choose is not None)
            y = select_outputs(outputs, settings.output, x.shape[0]) if looks else None  # checks the number of rows
            chosen = choose_points(settings, points, outputs, self.generator)
            batch = points if chosen is None else points[chosen]
            finite = all_finite(batch)
            counts = None if settings.persistent else finite
            if counts is not None:
                batch = _finite_copy(batch)
                if batch.shape[0] == 0:  # a rank without data takes part in each forward and collective all the same
                    batch, counts = batch.new_zeros(1, *batch.shape[1:]), finite.new_zeros(1)
            rule = ascent_rule(settings, batch, radius)
            pairs, memory = start(settings, known, state.stuck, batch, rule, radius, self.generator)

            followed = self._follow(f, pairs, batch)
            fx = None
            if anchored:
                fx = self._reused(f, x, y, outputs, chosen, batch.shape[0])
                if fx is None:
                    fx = f(pairs.x) if followed is None else followed
            if self.moves:
                pairs, memory = ascend(
                    pairs,
                    memory,
                    rule,
                    self._objective(f, None if fx is None else fx.detach(), quotients, limit),
                    steps=settings.ascent_steps,
                    anchored=settings.fixed_x or (limit and settings.ascent == "power"),
                    project=projection(settings, batch, radius),
                )
            q = quotients(f, pairs, fx, counts)

        value = self._reduce(q, counts)
        if self.moves:
            state.advance(pairs, memory if settings.persistent else {}, counts, finite.all(), floor)
            if settings.persistent:
                state.stuck = is_stuck(pairs, q.detach(), 0.0 if limit else floor, settings.input_norm)
        return value

    def _follow(self, f: FixedFunction, pairs: PairSet, points: Tensor) -> Tensor | None:
        """Let train-mode BatchNorm take its statistics over data points, as many as there are pairs; return f there."""
        if f.cannot_follow:
            self.state.warn_once(
                "BatchNorm in train mode under FSDP: its statistics are held constant, and the penalty may drive "
                "activations away from them. Use DDP, another norm, or BatchNorm in eval mode."
            )
        if not f.follows:
            return None
        if self.settings.fixed_x or len(points) == 0:
            return f.follow_statistics(pairs.x)
        return f.follow_statistics(_finite_copy(points[: len(pairs.x)]))

    def _reused(
        self, f: FixedFunction, x: Tensor, y: Tensor | None, outputs: Any, chosen: Tensor | None, size: int
    ) -> Tensor | None:
        """Return f(x) at the chosen points from y, the loop's outputs as penalised; None if it cannot serve."""
        if y is None or not self.reuse.allowed(f, x, y, rounded=in_half_precision(outputs)):
            return None
        rows = y if chosen is None else y[chosen]
        return rows if rows.shape[0] else y.new_zeros(size, *y.shape[1:])

    def _objective(
        self, f: FixedFunction, anchor: Tensor | None, quotients: Callable[..., Tensor], limit: bool
    ) -> Objective:
        """Return what the ascent climbs: see :mod:`torchlipreg.ascent`."""

        def squares(pairs: PairSet) -> tuple[Tensor, Tensor]:
            squared = quotients(f, pairs, anchor).square()
            return squared, torch.ones_like(squared)

        def heights(pairs: PairSet) -> tuple[Tensor, Tensor]:
            difference = pair_differences(f, pairs, anchor, limit=limit)
            return difference, norm_gradient(difference.detach(), self.settings.output_norm)

        return heights if self.settings.ascent == "power" else squares

    def _reduce(self, q: Tensor, counts: Tensor | None) -> Tensor:
        """Return the penalty's value from the quotients, zero where they do not count, and note the largest."""
        power = self.settings.power
        if self.settings.method == "max":
            maximum = reduce_max(q)
            self.state.estimate = maximum.detach()
            return maximum.pow(power)
        count = q.new_full((), len(q)) if counts is None else counts.sum(dtype=q.dtype)  # no copy from the host
        value, self.state.estimate = reduce_mean(q.pow(power).sum(), count, q.detach().amax())
        return value

    def _first_look(self, model: Callable[[Tensor], Any], points: Tensor) -> float:
        """Check the values of the first batch, and return the smallest distance that the dtype resolves there."""
        error = None
        try:
            check_values(points, self.settings.bounds)
            check_size(self.settings, self.radius, points)
        except ValueError as e:
            error = e
        scale = largest_or_raise(batch_norm(points, self.settings.input_norm).sum() / max(1, len(points)), error)
        dtype = compute_dtype(model, points)
        floor = distance_floor(dtype, scale)
        if self.radius is not None and 0 < self.radius < floor:
            self.state.warn_once(
                f"`radius`={self.radius:g} is less than {dtype} resolves for inputs of norm {scale:.3g} ({floor:.2g}): "
                "the limit ε → 0, the directional derivative, is computed instead. Pass radius=0 to ask for it."
            )
        return floor


def _finite_copy(x: Tensor) -> Tensor:
    """Return x with zeros for NaN and infinity."""
    return x.nan_to_num(0.0, 0.0, 0.0)
