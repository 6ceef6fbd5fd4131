"""One call of a penalty: draw pairs, move them uphill, reduce their quotients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from torchlipreg.call.methods import Batch, LocalPairs, PersistentPairs, check_first_batch, finite_copy
from torchlipreg.call.region import Region
from torchlipreg.call.settings import Settings
from torchlipreg.call.state import PenaltyState
from torchlipreg.checks import check_values
from torchlipreg.distributed import largest_or_raise, reduce_max, reduce_mean
from torchlipreg.geometry.ascent import Memory, Rule, ascend
from torchlipreg.geometry.norms import row_norm
from torchlipreg.geometry.pairs import PairSet
from torchlipreg.geometry.quotient import PairQuotient, Resolution, distance_floor
from torchlipreg.model.frozen import FixedFunction, fixed_function
from torchlipreg.model.modules import compute_dtype
from torchlipreg.model.reuse import LoopOutputs, OutputReuse


@dataclass(frozen=True)
class Step:
    """One call of a penalty.

    Nothing here reads a tensor's value, except in the first call and when the model's training flags change.

    Attributes:
        settings: Of the penalty.
        radius: ε as the user has it; None for pairs of different data points.
        state: Of the penalty; changed last, after everything that may fail.
        reuse: Whether the loop's outputs may stand for f(x).
        rng: The penalty's own generator.
        update: Move the pairs; otherwise evaluate the last call's, or fresh ones that are not kept.
    """

    settings: Settings
    radius: float | None
    state: PenaltyState
    reuse: OutputReuse
    rng: torch.Generator
    update: bool

    def __call__(self, model: Callable[[Tensor], Any], x: Tensor, outputs: Any) -> Tensor:
        """Return reduceᵢ qᵢ^exponent over all ranks, 0-dim, and note the outcome in the state.

        Args:
            model: The model being trained.
            x: The batch, shape (N, *).
            outputs: What the training loop's ``model(x)`` returned, or None.

        Returns:
            The value, with a gradient to the parameters.
        """
        points = x.detach() if x.dtype in (torch.float32, torch.float64) else x.detach().float()
        region = Region(self.settings, self._resolution(model, points))
        method = PersistentPairs(region) if self.settings.persistent else LocalPairs(region)
        with fixed_function(model, self.settings.output, eager=region.resolution.limit) as f:
            q = PairQuotient(f, self.settings.input_norm, self.settings.output_norm, region.resolution)
            previous = None if self.update else self.state.on(points.device)
            if previous is not None:
                return self._reduce(*self._as_before(f, q, previous[0], points))
            loop = self._looked_at(x, outputs, region)
            batch = method.batch(points, outputs, self.rng)
            rule = region.rule(batch.x)
            pairs, memory = method.start(batch, self.state, rule, self.rng)
            q = self._at_anchor(q, f, region, pairs, batch, loop)
            if self.update:
                pairs, memory = self._ascend(q, region, rule, batch, pairs, memory)
            quotients = q(pairs, batch.valid)
        value = self._reduce(quotients, batch.valid)
        if self.update:
            method.keep(self.state, pairs, memory, batch, quotients.detach())
        return value

    def _resolution(self, model: Callable[[Tensor], Any], points: Tensor) -> Resolution:
        """Return ε and the floor, on which the first batch decides: its values are looked at, and may be refused."""
        floor = self._first_look(model, points) if self.state.floor is None else self.state.floor
        return Resolution(self.radius, floor)

    def _as_before(
        self, f: FixedFunction, q: PairQuotient, pairs: PairSet, points: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Return the quotients of the last call's pairs, and which of them count."""
        valid = None if self.state.valid is None else self.state.valid.to(points.device)
        self._follow(f, pairs, points)
        return q(pairs, valid), valid

    def _looked_at(self, x: Tensor, outputs: Any, region: Region) -> LoopOutputs | None:
        """Return the loop's outputs, their shape checked, if this call looks at them."""
        if outputs is None or not (region.shares_fx or self.settings.choose):
            return None
        return LoopOutputs.select(x, outputs, self.settings.output)

    def _at_anchor(
        self,
        q: PairQuotient,
        f: FixedFunction,
        region: Region,
        pairs: PairSet,
        batch: Batch,
        loop: LoopOutputs | None,
    ) -> PairQuotient:
        """Fix f(x) for the call where x stays on the data point: the loop's outputs if they serve, else a forward."""
        followed = self._follow(f, pairs, batch.x)
        if not region.shares_fx:
            return q
        if loop is not None and self.reuse.allowed(f, loop):
            fx = loop.y if batch.rows is None else loop.y[batch.rows]
            return replace(q, fx=fx if len(fx) else loop.y.new_zeros(len(batch.x), *loop.y.shape[1:]))
        return replace(q, fx=f(pairs.x) if followed is None else followed)

    def _ascend(
        self, q: PairQuotient, region: Region, rule: Rule, batch: Batch, pairs: PairSet, memory: Memory
    ) -> tuple[PairSet, Memory]:
        return ascend(
            pairs,
            memory,
            rule,
            q.height if self.settings.ascent == "power" else q.square,
            steps=self.settings.ascent_steps,
            anchored=region.x_stays,
            project=partial(region.project, centre=batch.x),
        )

    def _follow(self, f: FixedFunction, pairs: PairSet, points: Tensor) -> Tensor | None:
        """Let train-mode BatchNorm take its statistics over data points, as many as there are pairs; return f there."""
        if f.cannot_follow:
            self.state.warn_once(
                "BatchNorm in train mode under FSDP: its statistics are held constant, and the penalty may drive "
                "activations away from them. Use DDP, another norm, or BatchNorm in eval mode."
            )
        if not f.follows:
            return None
        if self.settings.anchored or len(points) == 0:
            return f.follow_statistics(pairs.x)
        return f.follow_statistics(finite_copy(points[: len(pairs.x)]))

    def _reduce(self, q: Tensor, valid: Tensor | None) -> Tensor:
        """Return the penalty's value from the quotients, zero where they do not count, and note the largest."""
        exponent = self.settings.exponent
        if self.settings.method == "max":
            maximum = reduce_max(q)
            self.state.estimate = maximum.detach()
            return maximum.pow(exponent)
        count = q.new_full((), len(q)) if valid is None else valid.sum(dtype=q.dtype)  # no copy from the host
        value, self.state.estimate = reduce_mean(q.pow(exponent).sum(), count, q.detach().amax())
        return value

    def _first_look(self, model: Callable[[Tensor], Any], points: Tensor) -> float:
        """Check the values of the first batch, and return the smallest distance that the dtype resolves there."""
        error = None
        try:
            check_values(points, self.settings.bounds)
            check_first_batch(self.settings, self.radius, points)
        except ValueError as e:
            error = e
        scale = largest_or_raise(row_norm(points, self.settings.input_norm).sum() / max(1, len(points)), error)
        dtype = compute_dtype(model, points)
        floor = distance_floor(dtype, scale)
        if self.radius is not None and 0 < self.radius < floor:
            self.state.warn_once(
                f"`radius`={self.radius:g} is less than {dtype} resolves for inputs of norm {scale:.3g} ({floor:.2g}): "
                "the limit ε → 0, the directional derivative, is computed instead. Pass radius=0 to ask for it."
            )
        return floor
