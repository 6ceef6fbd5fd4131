"""One call of a penalty: draw pairs, move them uphill, reduce their quotients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from torchlipreg.ascent import ascend
from torchlipreg.checks import check_values
from torchlipreg.distributed import largest_or_raise, reduce_max, reduce_mean
from torchlipreg.frozen import FixedFunction, fixed_function
from torchlipreg.methods import ascent_rule, check_size, choose_points, is_stuck, projection, start
from torchlipreg.modules import compute_dtype
from torchlipreg.norms import batch_norm, per_row
from torchlipreg.objective import pair_quotients
from torchlipreg.pairs import PairSet, all_finite
from torchlipreg.quotient import distance_floor
from torchlipreg.reuse import OutputReuse, select_outputs
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
        points = x.detach().to(torch.promote_types(x.dtype, torch.float32), copy=True)
        floor = self._first_look(model, points) if state.floor is None else state.floor
        radius = 0.0 if self.radius is not None and self.radius < floor else self.radius
        quotients = partial(
            pair_quotients,
            input_norm=settings.input_norm,
            output_norm=settings.output_norm,
            floor=floor,
            limit=radius == 0,
        )
        known = state.on(x.device)
        with fixed_function(model, settings.output, eager=radius == 0) as f:
            if known is not None and not self.moves:
                if f.follows:
                    f.follow_statistics(self._reference(known[0], points))
                return self._reduce(quotients(f, known[0]), state.counts)
            chosen = choose_points(settings, points, self.generator)
            batch = points if chosen is None else points[chosen]
            finite = counts = all_finite(batch)
            if not settings.persistent:
                batch = _where_finite(batch)
                if len(batch) == 0:  # a rank without data takes part in each forward and collective all the same
                    batch, counts = batch.new_zeros(1, *batch.shape[1:]), finite.new_zeros(1)
            rule = ascent_rule(settings, batch, radius)
            pairs, memory = start(settings, known, state.stuck, batch, rule, radius, self.generator)

            followed = f.follow_statistics(self._reference(pairs, points)) if f.follows else None
            if f.cannot_follow:
                state.warn_once(
                    "BatchNorm in train mode under FSDP: its statistics are held constant, and the penalty may drive "
                    "activations away from them. Use DDP, another norm, or BatchNorm in eval mode."
                )
            fx = None
            if settings.fixed_x and radius != 0:
                fx = self._outputs_at(pairs.x, f, x, outputs, chosen, followed)
                fx = torch.where(per_row(counts, fx), fx, 0)
            if self.moves:
                anchor = None if fx is None else fx.detach()
                pairs, memory = ascend(
                    pairs,
                    memory,
                    rule,
                    lambda z: quotients(f, z, anchor, hold_distance=settings.ascent == "power") ** 2,
                    steps=settings.ascent_steps,
                    anchored=settings.fixed_x or (radius == 0 and settings.ascent == "power"),
                    project=projection(settings, batch, radius),
                )
            q = quotients(f, pairs, fx)

        value = self._reduce(q, None if settings.persistent else counts)
        if self.moves:
            if not settings.persistent:
                state.advance(pairs, {}, counts, finite.all(), floor)
            else:
                state.advance(pairs, memory, None, finite.all(), floor)
                state.stuck = is_stuck(pairs, q.detach(), 0.0 if radius == 0 else floor, settings.input_norm)
        return value

    def _reference(self, pairs: PairSet, points: Tensor) -> Tensor:
        """Return as many data points as there are pairs, over which train-mode BatchNorm takes its statistics."""
        if self.settings.fixed_x or len(points) == 0:
            return pairs.x
        return _where_finite(points[: len(pairs.x)])

    def _outputs_at(
        self,
        points: Tensor,
        f: FixedFunction,
        x: Tensor,
        outputs: Any,
        chosen: Tensor | None,
        followed: Tensor | None,
    ) -> Tensor:
        if outputs is not None:
            y = select_outputs(outputs, self.settings.output, len(x))
            if self.reuse.allowed(f, x, y):
                if len(x) == 0:
                    return y.new_zeros(len(points), *y.shape[1:])
                return y if chosen is None else y[chosen]
        return f(points) if followed is None else followed

    def _reduce(self, q: Tensor, valid: Tensor | None = None) -> Tensor:
        power = self.settings.power
        valid = torch.ones_like(q, dtype=torch.bool) if valid is None else valid.to(q.device)
        if self.settings.method == "max":
            maximum = reduce_max(q, valid)
            self.state.estimate = maximum.detach()
            return maximum**power
        value, self.state.estimate = reduce_mean(q**power, valid, torch.where(valid, q.detach(), 0).amax())
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


def _where_finite(x: Tensor) -> Tensor:
    return torch.where(per_row(all_finite(x), x), x, 0)
