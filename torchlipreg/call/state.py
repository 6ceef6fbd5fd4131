"""PenaltyState: what a penalty remembers from call to call, and its form on disk."""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchlipreg.distributed import gather_objects, rank, world_size
from torchlipreg.geometry.ascent import Memory, where_memory
from torchlipreg.geometry.pairs import PairSet
from torchlipreg.model.side import SideRows, where_rows

STATE_VERSION = 2
RANK_STRIDE = 1_000_003  # between the seeds of neighbouring ranks, so that seed + 1 is not the next rank's
CALL_STRIDE = 2_654_435_761  # odd: no two of the 2³² seeds of a CPU generator meet within 2³² calls


class Carried(NamedTuple):
    """Pairs and what belongs to each of them.

    Attributes:
        pairs: Shape (N, *).
        memory: The ascent rule's; none for local methods.
        side: What else the model takes, with a row for each pair: both its points are seen with it.
    """

    pairs: PairSet
    memory: Memory
    side: SideRows

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
        floor: Smallest distance in the input norm that the dtype resolves; None before the first batch was seen.
        pairs: The last call's pairs. Saved only if persistent, that is, if ``stuck`` is set.
        memory: The ascent rule's; none for local methods.
        side: What else the model takes, with a row for each pair.
        valid: Which pairs of a local method count, shape (num_pairs,), bool: not those of rows that were not finite.
        stuck: Persistent pairs to draw anew in the next call, shape (num_pairs,), bool; None for local methods.
        estimate: The largest quotient of the last call, 0-dim.
        warned: Messages, or their keys, that were given already.
    """

    calls: int = 0
    floor: float | None = None
    pairs: PairSet | None = None
    memory: Memory = field(default_factory=dict)
    side: SideRows = field(default_factory=dict)
    valid: Tensor | None = None
    stuck: Tensor | None = None
    estimate: Tensor = field(default_factory=lambda: torch.zeros(()))
    warned: set[str] = field(default_factory=set)
    _finite: Tensor | None = None
    _generator: torch.Generator | None = None
    _gathered: list[dict[str, Any]] | None = None

    def on(self, device: torch.device) -> Carried | None:
        """Return the pairs and what belongs to them on a device; None before the first call."""
        if self.pairs is None:
            return None
        memory = {name: value.to(device) for name, value in self.memory.items()}
        return Carried(self.pairs.to(device), memory, {name: value.to(device) for name, value in self.side.items()})

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
        self.pairs, self.memory, self.side = carried
        self.valid, self.stuck, self._gathered = valid, stuck, None

    def warn_of_nonfinite(self) -> None:
        """Warn if a batch since the last time of asking was not finite. Synchronises with the GPU."""
        finite, self._finite = self._finite, None
        if finite is not None and not bool(finite):
            _warn("A batch held NaN or infinity: those rows were left out of the penalty, persistent pairs stayed put.")

    def warn_once(self, message: str, key: str | None = None) -> None:
        """Warn, unless the message, or another with the same key, was given before."""
        if (key or message) not in self.warned:
            self.warned.add(key or message)
            _warn(message)

    def generator(self, device: torch.device, seed: int) -> torch.Generator:
        """Return the penalty's own generator, whose numbers depend on the seed, the rank and the count of calls alone.

        So a resumed run draws what the uninterrupted one would have, also where only rank 0 could save its state, and
        a call that fails or keeps nothing leaves no trace.
        """
        if self._generator is None or self._generator.device != device:
            self._generator = torch.Generator(device)
        number = seed + RANK_STRIDE * rank() + CALL_STRIDE * self.calls
        return self._generator.manual_seed(number % 2**63)

    def gather(self) -> None:
        """Hold the pairs of all ranks for the next :meth:`to_dict`. Collective."""
        self._gathered = gather_objects(self._local())

    def to_dict(self) -> dict[str, Any]:
        """Return the state in plain types, on the CPU: with the pairs of all ranks if gathered, else of this one."""
        if self._gathered is None and world_size() > 1 and self.stuck is not None:
            self.warn_once(
                "`state_dict()` holds the pairs of this rank only: those of the others will start anew. Call "
                "`penalty.synchronize()` on every rank just before."
            )
        return {
            "calls": self.calls,
            "floor": self.floor,
            "estimate": self.estimate.detach().cpu().clone(),
            "ranks": self._gathered or [self._local()],
            "owner": None if self._gathered or world_size() == 1 else [rank(), world_size()],
        }

    @classmethod
    def from_dict(cls, state: dict[str, Any], identity: dict[str, Any]) -> PenaltyState:
        """Return this rank's part of a saved state.

        Args:
            state: From ``LipschitzPenalty.state_dict``.
            identity: What must be equal: version, method, ….

        Returns:
            The state; a rank for which there are no pairs in it has none, and draws them in its next call.

        Raises:
            TypeError: If ``state`` is not a dict.
            ValueError: If ``state`` is of another version, another kind of penalty or no such state.
        """
        if not isinstance(state, dict):
            raise TypeError(
                f"Expected argument `state` to be a dict from state_dict(), but got {type(state).__name__}."
            )
        names = (*identity, "weight", "radius", "calls", "floor", "estimate", "ranks", "owner")
        missing = [name for name in names if name not in state]
        if missing:
            raise ValueError(f"Expected argument `state` to be a LipschitzPenalty state, but it lacks {missing}.")
        for name, expected in identity.items():
            if state[name] != expected:
                raise ValueError(
                    f"Expected argument `state` to have {name}={expected!r}, but got {state[name]!r}: it was saved by "
                    "another kind of penalty. Construct this one with the same arguments, or start without the state."
                )
        own = _deal(state["ranks"], state["owner"])
        pairs = None if own["pairs"] is None else PairSet(**own["pairs"])
        memory = {name: PairSet(**value) for name, value in own["ascent"].items()}
        # Where a rank has no pairs yet, all ranks look at their next batch as at the first, together.
        floor = state["floor"] if _enough_for_all(state["ranks"], state["owner"]) else None
        return cls(
            state["calls"], floor, pairs, memory, own["side"], stuck=own["stuck"], estimate=state["estimate"].clone()
        )

    def _local(self) -> dict[str, Any]:
        if self.stuck is None or self.pairs is None:
            return NOTHING
        return {
            "pairs": _copy(self.pairs),
            "ascent": {name: _copy(value) for name, value in self.memory.items()},
            "side": {name: value.to("cpu", copy=True) for name, value in self.side.items()},
            "stuck": self.stuck.cpu().clone(),
        }

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_generator": None}  # a torch.Generator can be neither pickled nor deep-copied


def _warn(message: str) -> None:
    """Warn, pointing at the line that called the penalty."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("torchlipreg."):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


NOTHING: dict[str, Any] = {"pairs": None, "ascent": {}, "side": {}, "stuck": None}


def _copy(pairs: PairSet) -> dict[str, Tensor]:
    # To the CPU: a pickled CUDA tensor would come back on the other rank's device.
    return {"x": pairs.x.to("cpu", copy=True), "x_prime": pairs.x_prime.to("cpu", copy=True)}


def _enough_for_all(ranks: list[dict[str, Any]], owner: list[int] | None) -> bool:
    counts = [0 if r["pairs"] is None else len(r["stuck"]) for r in ranks]
    if not any(counts):
        return True  # tv and ptv save none
    if len(ranks) == world_size() or (owner is not None and owner[1] == world_size()):
        return all(counts) and len(ranks) == world_size()
    return sum(counts) >= world_size()


def _deal(ranks: list[dict[str, Any]], owner: list[int] | None) -> dict[str, Any]:
    """Return this rank's share of saved pairs: its own if the number of ranks is the same, else every W-th of all."""
    if owner is not None and owner[1] == world_size():
        return ranks[0] if owner[0] == rank() else NOTHING
    if owner is None and len(ranks) == world_size():
        return ranks[rank()]
    ranks = [r for r in ranks if r["pairs"] is not None]
    share = slice(rank(), None, world_size())
    if not ranks or rank() >= sum(len(r["stuck"]) for r in ranks):
        return NOTHING

    def deal(tensors: list[Tensor]) -> Tensor:
        return torch.cat(tensors)[share].clone()

    def deal_pairs(pairs: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {name: deal([p[name] for p in pairs]) for name in ("x", "x_prime")}

    return {
        "pairs": deal_pairs([r["pairs"] for r in ranks]),
        "ascent": {name: deal_pairs([r["ascent"][name] for r in ranks]) for name in ranks[0]["ascent"]},
        "side": {name: deal([r["side"][name] for r in ranks]) for name in ranks[0]["side"]},
        "stuck": deal([r["stuck"] for r in ranks]),
    }
