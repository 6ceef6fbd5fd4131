"""PenaltyState: what a penalty remembers from call to call, and its form on disk."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from torchlipreg.ascent import State, where_state
from torchlipreg.distributed import gather_objects, rank, world_size
from torchlipreg.pairs import PairSet

STATE_VERSION = 1
RANK_STRIDE = 1_000_003  # between the seeds of neighbouring ranks, so that seed + 1 is not the next rank's


@dataclass
class PenaltyState:
    """A penalty's memory.

    Attributes:
        calls: Calls that moved the pairs or were skipped by ``interval``.
        floor: Smallest distance in the input norm that the dtype resolves; None before the first batch was seen.
        pairs: The last call's pairs. Saved only if persistent, that is, if ``stuck`` is set.
        ascent: The ascent rule's state.
        stuck: Persistent pairs to draw anew in the next call, shape (num_pairs,), bool; None for local methods.
        estimate: The largest quotient of the last call, 0-dim.
        warned: Messages that were given already.
    """

    calls: int = 0
    floor: float | None = None
    pairs: PairSet | None = None
    ascent: State = field(default_factory=dict)
    stuck: Tensor | None = None
    estimate: Tensor = field(default_factory=lambda: torch.zeros(()))
    warned: set[str] = field(default_factory=set)
    _nonfinite: Tensor | None = None
    _generator: torch.Generator | None = None
    _saved_random: dict[str, Any] | None = None  # of a loaded state, until the device is known
    _gathered: list[dict[str, Any]] | None = None

    def on(self, device: torch.device) -> tuple[PairSet, State] | None:
        """Return pairs and ascent state on a device; None before the first call."""
        if self.pairs is None:
            return None
        return self.pairs.to(device), {name: value.to(device) for name, value in self.ascent.items()}

    def advance(self, pairs: PairSet, ascent: State, finite: Tensor, floor: float) -> None:
        """Note the outcome of a call; if its batch was not finite (0-dim bool), earlier pairs of the shape stay."""
        earlier = self.on(pairs.x.device)
        if earlier is not None and earlier[0].x.shape == pairs.x.shape:
            keep = finite.expand(len(pairs.x))
            pairs, ascent = pairs.where(keep, earlier[0]), where_state(keep, ascent, earlier[1])
        bad = ~finite
        self._nonfinite = bad if self._nonfinite is None else bad | self._nonfinite.to(bad.device)
        self.calls, self.floor, self.pairs, self.ascent = self.calls + 1, floor, pairs, ascent
        self._gathered = None

    def saw_nonfinite(self) -> bool:
        """Say whether a batch since the last time of asking was not finite. Synchronises with the GPU."""
        saw, self._nonfinite = self._nonfinite is not None and bool(self._nonfinite), None
        return saw

    def warn_once(self, message: str) -> None:
        """Warn, pointing at the line that called the penalty, unless the message was given before."""
        if message not in self.warned:
            self.warned.add(message)
            warnings.warn(message, stacklevel=3)

    @contextmanager
    def random_source(self, device: torch.device, seed: int, *, keep: bool) -> Iterator[torch.Generator]:
        """Lend the penalty's own generator; after an error, or unless ``keep``, its state goes back to what it was."""
        if self._generator is None or self._generator.device.type != device.type:
            self._generator = torch.Generator(device).manual_seed(seed + RANK_STRIDE * rank())
            if self._saved_random is not None and self._saved_random["device"] == device.type:
                self._generator.set_state(self._saved_random["state"])
        before, completed = self._generator.get_state(), False
        try:
            yield self._generator
            completed = True
        finally:
            if not (keep and completed):
                self._generator.set_state(before)

    def gather(self) -> None:
        """Hold the states of all ranks for the next :meth:`to_dict`. Collective."""
        self._gathered = gather_objects(self._local())

    def to_dict(self) -> dict[str, Any]:
        """Return the state in plain types: of all ranks if gathered, else of this one."""
        ranks = self._gathered or [self._local()]
        return {
            "calls": self.calls,
            "floor": self.floor,
            "estimate": self.estimate.detach().clone(),
            "ranks": ranks,
        }

    @classmethod
    def from_dict(cls, state: dict[str, Any], identity: dict[str, Any]) -> PenaltyState:
        """Return this rank's part of a saved state.

        Args:
            state: From ``LipschitzPenalty.state_dict``.
            identity: What must be equal: version, method, ….

        Returns:
            The state, on the device it was saved from or mapped to.

        Raises:
            ValueError: If ``state`` is of another version, another kind of penalty or no such state.
        """
        missing = [k for k in (*identity, "weight", "radius", "calls", "floor", "estimate", "ranks") if k not in state]
        if missing:
            raise ValueError(f"Expected argument `state` to be a LipschitzPenalty state, but it lacks {missing}.")
        for name, expected in identity.items():
            if state[name] != expected:
                raise ValueError(
                    f"Expected argument `state` to have {name}={expected!r}, but got {state[name]!r}: it was saved by "
                    "another kind of penalty. Construct this one with the same arguments, or start without the state."
                )
        own = _deal(state["ranks"])
        pairs = None if own["pairs"] is None else PairSet(**own["pairs"])
        ascent = {name: PairSet(**value) for name, value in own["ascent"].items()}
        return cls(
            state["calls"], state["floor"], pairs, ascent, own["stuck"], state["estimate"], _saved_random=own["random"]
        )

    def _local(self) -> dict[str, Any]:
        persistent = self.stuck is not None and self.pairs is not None
        return {
            "pairs": _copy(self.pairs) if persistent and self.pairs else None,
            "ascent": {name: _copy(value) for name, value in self.ascent.items()} if persistent else {},
            "stuck": None if self.stuck is None else self.stuck.clone(),
            "random": self._random(),
        }

    def _random(self) -> dict[str, Any] | None:
        if self._generator is None:
            return self._saved_random
        return {"device": self._generator.device.type, "state": self._generator.get_state()}

    def __getstate__(self) -> dict[str, Any]:
        # A torch.Generator can be neither pickled nor deep-copied; its state can.
        return {**self.__dict__, "_generator": None, "_saved_random": self._random()}


def _copy(pairs: PairSet) -> dict[str, Tensor]:
    return {"x": pairs.x.clone(), "x_prime": pairs.x_prime.clone()}


def _deal(ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """Return this rank's share of the states of all ranks: every W-th pair from its rank on."""
    if len(ranks) == world_size():
        return ranks[rank()]
    random = None  # another number of processes cannot continue the same random streams
    if ranks[0]["pairs"] is None:
        return {**ranks[0], "random": random}
    share = slice(rank(), None, world_size())

    def deal(tensors: list[Tensor]) -> Tensor:
        return torch.cat([t.to(tensors[0].device) for t in tensors])[share]

    def deal_pairs(pairs: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {name: deal([p[name] for p in pairs]) for name in ("x", "x_prime")}

    return {
        "pairs": deal_pairs([r["pairs"] for r in ranks]),
        "ascent": {name: deal_pairs([r["ascent"][name] for r in ranks]) for name in ranks[0]["ascent"]},
        "stuck": deal([r["stuck"] for r in ranks]),
        "random": random,
    }
