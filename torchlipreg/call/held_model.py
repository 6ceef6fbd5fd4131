"""HeldModel: the model of a call as a fixed function, and what is seen of it before the first one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from torchlipreg.call.resolution import look_at_precision
from torchlipreg.call.settings import Settings
from torchlipreg.call.state import PenaltyState
from torchlipreg.geometry.pairs import at_least_one
from torchlipreg.inspection.inspector import Inspector
from torchlipreg.inspection.probes import half
from torchlipreg.inspection.seen import SURROGATE, Seen
from torchlipreg.inspection.surrogate import has_surrogate
from torchlipreg.model.fixed import fixed_function
from torchlipreg.model.function import FixedFunction
from torchlipreg.model.parts.modules import all_modules
from torchlipreg.model.parts.parallelism import is_sharded
from torchlipreg.model.parts.side import SideRows, take_rows


@dataclass
class HeldModel:
    """The model of a call.

    Attributes:
        model: As the user gave it.
        points: The batch, in raw units, shape (N, *).
        side: What else the model takes, with a row for each of them.
        rest: What else it takes by name, the same for any part of the batch.
        settings: Of the penalty.
        state: Of the penalty, which warns once.
        inspector: What a forward shows of a model.
        rng: The penalty's own generator.
    """

    model: Callable[..., Any]
    points: Tensor
    side: SideRows
    rest: Mapping[str, Any]
    settings: Settings
    state: PenaltyState
    inspector: Inspector
    rng: torch.Generator

    def fixed(self, seen: Seen | None, **how: bool) -> AbstractContextManager[FixedFunction]:
        """Hold the model as a fixed function for the length of a context."""
        settings = self.settings
        same = settings.stochastic == "same"
        return fixed_function(
            self.model,
            settings.output,
            units=settings.units,
            kwargs=self.rest,
            batch_size=len(self.points),
            stateful=seen is not None and seen.stateful,
            noise_seed=self.rng.initial_seed() if same or (seen is not None and seen.draws) else None,
            apart=same,
            **how,
        )

    def seen(self) -> Seen:
        """Return what was seen of the model; before its first call look at it: some forwards, and a backward."""
        seen = self.inspector.known(self.model)
        if seen is not None:
            return seen
        points, side = self.points, self.side
        with self.fixed(None) as f:
            some = at_least_one(points)
            part = f.with_rows(take_rows(side, slice(half(some)))) if self.settings.aligned else None
            seen = self.inspector.look(self.model, f.with_rows(side), some, part=part, gradient=torch.is_grad_enabled())
            if not self.settings.aligned:
                self.inspector.look_at_another_number(f.with_rows(side), some)
        for about, caution in seen.cautions().items():
            self.state.warn_once(caution, key=about)
        look_at_precision(self.settings, self.state, seen.dtype, points)
        return seen

    def look_at_derivative(self, seen: Seen) -> None:
        """Look, once in the limit, whether the derivative is that of the values; not where FSDP shards the model."""
        if seen.surrogate is None and seen.graph and not is_sharded(all_modules(self.model)):
            in_float64 = partial(self.fixed, seen, eager=True, double=True, meet=True)
            surrogate = has_surrogate(in_float64, self.points, self.side, bounds=self.settings.bounds)
            self.inspector.note(self.model, surrogate=surrogate)
            if surrogate:
                self.state.warn_once(SURROGATE)
