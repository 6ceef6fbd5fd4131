"""PenaltyState: what a penalty remembers from call to call."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchlipreg.distributed import rank
from torchlipreg.geometry.ascent import Memory, where_memory
from torchlipreg.geometry.pairs import PairSet
from torchlipreg.model.parts.side import SideRows, where_rows
from torchlipreg.notice import warn_user

RANK_STRIDE = 1_000_003  # between the seeds of neighbouring ranks, so that seed + 1 is not the next rank's
CALL_STRIDE = 2_654_435_761  # odd: no two of the 2³² seeds of a CPU generator meet within 2³² calls


class Carried(NamedTuple):
    """Pairs and what belongs to each of them.

    Attributes:
        pairs: Shape (N, *).
        memory: The ascent rule's.
        side: What else the model takes, with a row for each pair: both its points are seen with it.
    """

    pairs: PairSet
    memory: Memory
    side: SideRows

    def to(self, device: torch.device) -> Carried:
        """Return them on a device."""
        memory = {name: value.to(device) for name, value in self.memory.items()}
        return Carried(self.pairs.to(device), memory, {name: value.to(device) for name, value in self.side.items()})

    def where(self, keep: Tensor, other: Carried) -> Carried:
        """Return this where ``keep``, shape (N,), is true, and the other elsewhere."""
        return Carried(
            self.pairs.where(keep, other.pairs),
            where_memory(keep, self.memory, other.memory),
            where_rows(keep, self.side, other.side),
        )


@dataclass
class PenaltyState:
    """A penalty's memory.

    Attributes:
        calls: Calls that moved the pairs or were skipped by ``interval``.
        radius: ε as the user has it now; None for pairs of different data points.
        floor: Smallest distance in the input norm that the dtype resolves; None before the first batch was seen.
        last: The last call's pairs, without memory for local methods; None before the first call. Saved only if
            persistent, that is, if ``stuck`` is set.
        valid: Which pairs of a local method count, shape (N,), bool: not those of rows that were not finite.
        stuck: Persistent pairs to draw anew in the next call, shape (num_pairs,), bool; None for local methods.
        estimate: The largest quotient of the last call, 0-dim.
        gathered: The pairs of all ranks, for the next saving; None if they moved since they were gathered.
        warned: Messages, or their keys, that were given already.
    """

    calls: int = 0
    radius: float | None = None
    floor: float | None = None
    last: Carried | None = None
    valid: Tensor | None = None
    stuck: Tensor | None = None
    estimate: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float32))
    gathered: list[dict[str, Any]] | None = None
    warned: set[str] = field(default_factory=set)
    _finite: Tensor | None = None
    _generator: torch.Generator | None = None

    @property
    def names_of_rows(self) -> Collection[str] | None:
        """What persistent pairs keep of the side inputs; None before there are any, and for local methods."""
        return None if self.stuck is None or self.last is None else self.last.side.keys()

    def on(self, device: torch.device) -> Carried | None:
        """Return the pairs and what belongs to them on a device; None before the first call."""
        return None if self.last is None else self.last.to(device)

    def advance(
        self,
        carried: Carried,
        floor: float,
        finite: Tensor,
        *,
        valid: Tensor | None = None,
        stuck: Tensor | None = None,
    ) -> None:
        """Note the outcome of a call that moved the pairs."""
        self._finite = finite if self._finite is None else finite & self._finite.to(finite.device)
        self.calls, self.floor = self.calls + 1, floor
        self.last, self.valid, self.stuck, self.gathered = carried, valid, stuck, None

    def replace(self, carried: Carried, *, redraw: bool) -> None:
        """Let other pairs stand for those of the last call, which the next one may draw anew."""
        self.last, self.gathered = carried, None
        if redraw:
            x = carried.pairs.x
            self.stuck = torch.ones(len(x), dtype=torch.bool, device=x.device)

    def warn_of_nonfinite(self) -> None:
        """Warn if a batch since the last time of asking was not finite. Synchronises with the GPU."""
        finite, self._finite = self._finite, None
        if finite is not None and not bool(finite):
            warn_user(
                "A batch held NaN or infinity: those rows were left out of the penalty, persistent pairs stayed put."
            )

    def warn_once(self, message: str, key: str | None = None) -> None:
        """Warn, unless the message, or another with the same key, was given before."""
        if (key or message) not in self.warned:
            self.warned.add(key or message)
            warn_user(message)

    def generator(self, device: torch.device, seed: int, call: int) -> torch.Generator:
        """Return the penalty's own generator, whose numbers depend on the seed, the rank and the call's number alone.

        So a resumed run draws what the uninterrupted one would have, also where only rank 0 could save its state, and
        a call that fails or keeps nothing leaves no trace.
        """
        if self._generator is None or self._generator.device != device:
            self._generator = torch.Generator(device)
        number = seed + RANK_STRIDE * rank() + CALL_STRIDE * call
        return self._generator.manual_seed(number % 2**63)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_generator": None}  # a torch.Generator can be neither pickled nor deep-copied
