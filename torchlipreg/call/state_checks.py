"""Checkpoints from strangers: is a dict the state of a penalty? Asked before anything is changed."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from torchlipreg.geometry.ascent import Rule
from torchlipreg.geometry.pairs import PairSet
from torchlipreg.geometry.rules import SGD, Adam, Nesterov, Power

FIELDS = ("pairs", "ascent", "side", "stuck")  # of each rank


ONE = PairSet(torch.zeros(1, 1, device="cpu"), torch.zeros(1, 1, device="cpu"))
RULES: dict[str, Rule] = {"power": Power(2, anchored=True), "sgd": SGD(1, 0), "nesterov": Nesterov(1), "adam": Adam(1)}
MEMORY = {name: set(rule.start(ONE)) for name, rule in RULES.items()}  # what each remembers of a pair


def check_saved(saved: dict[str, Any]) -> None:
    """Raise ValueError where a field is not what ``state_dict`` would have put there.

    Args:
        saved: Has every field, and the identity of the penalty that it is loaded into.
    """
    calls, floor, owner = saved["calls"], saved["floor"], saved["owner"]
    _expect(_is_count(calls), "calls", "an integer >= 0", calls)
    is_floor = floor is None or (_is_positive(floor) and floor < 1e30)  # float32 has to hold it
    _expect(is_floor, "floor", "None or a number > 0, < 1e30", floor)
    estimate = saved["estimate"]
    _expect(isinstance(estimate, Tensor) and estimate.dim() == 0, "estimate", "a 0-dim tensor", estimate)
    is_owner = owner is None or (isinstance(owner, (list, tuple)) and len(owner) == 2 and all(map(_is_count, owner)))
    _expect(is_owner and (owner is None or owner[0] < owner[1]), "owner", "None or [rank, number of ranks]", owner)
    ranks = saved["ranks"]
    _expect(isinstance(ranks, list) and len(ranks) > 0, "ranks", "a list with an entry for each rank", ranks)
    for entry in ranks:
        has_fields = isinstance(entry, dict) and set(FIELDS) <= entry.keys()
        _expect(has_fields, "ranks", f"dicts with {', '.join(FIELDS)}", entry)
        _check_rank(entry, MEMORY[saved["ascent"]])
    kinds = {(tuple(r["pairs"]["x"].shape[1:]), *r["ascent"], *r["side"]) for r in ranks if r["pairs"] is not None}
    _expect(len(kinds) <= 1, "ranks", "pairs of one shape with the same fields", kinds)


def _check_rank(entry: dict[str, Any], memory: set[str]) -> None:
    pairs, stuck = entry["pairs"], entry["stuck"]
    for name in ("ascent", "side"):
        _expect(isinstance(entry[name], dict), name, "a dict", entry[name])
    if pairs is None:
        nothing = not entry["ascent"] and not entry["side"] and stuck is None
        return _expect(nothing, "ranks", "nothing beside pairs that are None", entry)
    _check_pairs("pairs", pairs, None)
    x = pairs["x"]
    is_mask = isinstance(stuck, Tensor) and stuck.dtype == torch.bool and stuck.shape == x.shape[:1]
    _expect(is_mask, "stuck", f"a bool tensor of shape ({len(x)},)", stuck)
    _expect(entry["ascent"].keys() == memory, "ascent", f"the fields {sorted(memory)}", entry["ascent"])
    for name, held in entry["ascent"].items():
        _check_pairs(f"ascent {name!r}", held, x)
    for name, rows in entry["side"].items():
        fits = isinstance(rows, Tensor) and rows.dim() > 0 and len(rows) == len(x) and _is_stored(rows)
        _expect(fits, f"side {name!r}", f"a tensor with {len(x)} rows", rows)


def _check_pairs(name: str, pairs: Any, like: Tensor | None) -> None:
    is_pair = isinstance(pairs, dict) and pairs.keys() == {"x", "x_prime"}
    _expect(is_pair and all(isinstance(z, Tensor) for z in pairs.values()), name, "tensors x and x_prime", pairs)
    for z in pairs.values():
        fits = z.is_floating_point() and z.dim() > 0 and (like is None or len(z) == len(like))
        _expect(fits and z.shape == pairs["x"].shape and _is_stored(z), name, "floating tensors of one shape", z)
        _expect(bool(z.isfinite().all()), name, "finite numbers", z)


def _is_stored(z: Tensor) -> bool:
    """Say whether a tensor has as many numbers as its shape says: an expanded one would grow when it is copied."""
    return z.layout == torch.strided and z.untyped_storage().nbytes() >= z.numel() * z.element_size()


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf


def _expect(fits: bool, field: str, expected: str, got: Any) -> None:
    if fits:
        return
    shown = f"a tensor of shape {tuple(got.shape)}, {got.dtype}" if isinstance(got, Tensor) else repr(got)[:80]
    raise ValueError(
        f"Expected argument `state` to have {expected} as {field}, but got {shown}. It is not a state of a penalty: "
        "start without it."
    )
