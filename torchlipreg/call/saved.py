"""A penalty's state on disk: plain types, the pairs of all ranks, and their dealing out to another number of ranks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchlipreg.call.state import Carried, PenaltyState
from torchlipreg.call.state_checks import check_saved
from torchlipreg.distributed import gather_objects, rank, world_size
from torchlipreg.geometry.pairs import PairSet

STATE_VERSION = 2


def gather(state: PenaltyState) -> None:
    """Hold the pairs of all ranks for the next :func:`to_dict`. Collective."""
    state.gathered = gather_objects(of_this_rank(state))


def to_dict(state: PenaltyState) -> dict[str, Any]:
    """Return the state in plain types, on the CPU: with the pairs of all ranks if gathered, else of this one."""
    if state.gathered is None and world_size() > 1 and state.stuck is not None:
        state.warn_once(
            "`state_dict()` holds the pairs of this rank only: those of the others will start anew. Call "
            "`penalty.synchronize()` on every rank just before."
        )
    return {
        "radius": state.radius,
        "calls": state.calls,
        "floor": state.floor,
        "estimate": state.estimate.detach().cpu().clone(),
        "ranks": state.gathered or [of_this_rank(state)],
        "owner": None if state.gathered or world_size() == 1 else [rank(), world_size()],
    }


def from_dict(saved: dict[str, Any], identity: dict[str, Any]) -> PenaltyState:
    """Return this rank's part of a saved state.

    Args:
        saved: From ``LipschitzPenalty.state_dict``.
        identity: What must be equal: version, method, ….

    Returns:
        The state; a rank for which there are no pairs in it has none, and draws them in its next call.

    Raises:
        TypeError: If ``saved`` is not a dict.
        ValueError: If ``saved`` is of another version, another kind of penalty or no such state.
    """
    if not isinstance(saved, dict):
        raise TypeError(f"Expected argument `state` to be a dict from state_dict(), but got {type(saved).__name__}.")
    names = (*identity, "weight", "radius", "calls", "floor", "estimate", "ranks", "owner")
    missing = [name for name in names if name not in saved]
    if missing:
        raise ValueError(f"Expected argument `state` to be a LipschitzPenalty state, but it lacks {missing}.")
    for name, expected in identity.items():
        if isinstance(saved[name], Tensor) or saved[name] != expected:
            raise ValueError(
                f"Expected argument `state` to have {name}={expected!r}, but got {saved[name]!r}: it was saved by "
                "another kind of penalty. Construct this one with the same arguments, or start without the state."
            )
    check_saved(saved)
    own = _deal(saved["ranks"], saved["owner"])
    last = None
    if own["pairs"] is not None:
        memory = {name: PairSet(**value) for name, value in own["ascent"].items()}
        last = Carried(PairSet(**own["pairs"]), memory, own["side"])
    # Where a rank has no pairs yet, all ranks look at their next batch as at the first, together.
    floor = saved["floor"] if _enough_for_all(saved["ranks"], saved["owner"]) else None
    return PenaltyState(
        saved["calls"],
        saved["radius"],
        floor,
        last,
        stuck=own["stuck"],
        estimate=saved["estimate"].clone(),
    )


def _nothing() -> dict[str, Any]:
    return {"pairs": None, "ascent": {}, "side": {}, "stuck": None}


def of_this_rank(state: PenaltyState) -> dict[str, Any]:
    """Return this rank's pairs and what belongs to them, on the CPU; nothing for local methods."""
    if state.stuck is None or state.last is None:
        return _nothing()
    pairs, memory, side = state.last
    return {
        "pairs": _copy(pairs),
        "ascent": {name: _copy(value) for name, value in memory.items()},
        "side": {name: value.to("cpu", copy=True) for name, value in side.items()},
        "stuck": state.stuck.cpu().clone(),
    }


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
        return ranks[0] if owner[0] == rank() else _nothing()
    if owner is None and len(ranks) == world_size():
        return ranks[rank()]
    ranks = [r for r in ranks if r["pairs"] is not None]
    share = slice(rank(), None, world_size())
    if not ranks or rank() >= sum(len(r["stuck"]) for r in ranks):
        return _nothing()

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
