"""Checks of the user's input: each names the argument, what was expected, what came, and the way out."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torchlipreg.geometry.norms import EXPONENTS


def check_choice(name: str, value: Any, choices: Sequence[Any]) -> None:
    """Raise ValueError unless ``value`` is one of ``choices``."""
    if not isinstance(value, (str, numbers.Real)) or value not in choices:
        raise ValueError(f"Expected argument `{name}` to be one of {', '.join(map(repr, choices))}, but got {value!r}.")


def check_norm(name: str, p: Any) -> None:
    """Raise ValueError unless ``p`` is 1, 2 or ``math.inf``."""
    if isinstance(p, str) or isinstance(p, bool):
        raise ValueError(f"Expected argument `{name}` to be 1, 2 or math.inf, a number, but got {p!r}.")
    check_choice(name, p, EXPONENTS)


def check_number(name: str, value: Any, *, low: float = 0.0, exclusive: bool = False) -> float:
    """Return ``value`` as a float; raise unless it is a finite real number ≥ ``low`` (> if ``exclusive``)."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"Expected argument `{name}` to be a number, but got {value!r} ({type(value).__name__}).")
    if not math.isfinite(value) or value < low or (exclusive and value == low):
        raise ValueError(
            f"Expected argument `{name}` to be finite and {'>' if exclusive else '>='} {low:g}, but got {value!r}."
        )
    return float(value)


def check_count(name: str, value: Any) -> int:
    """Return ``value`` as an int; raise unless it is an integer ≥ 1."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"Expected argument `{name}` to be an integer, but got {value!r} ({type(value).__name__}).")
    if value < 1:
        raise ValueError(f"Expected argument `{name}` to be at least 1, but got {value!r}.")
    return int(value)


def check_bounds(bounds: Any) -> tuple[float, float] | None:
    """Return ``bounds`` as two floats (lo < hi) or None; raise otherwise."""
    if bounds is None:
        return None
    try:
        low, high = (float(b) if isinstance(b, numbers.Real) and not isinstance(b, bool) else math.nan for b in bounds)
    except (TypeError, ValueError):
        raise TypeError(f"Expected argument `bounds` to be two numbers (lo, hi), but got {bounds!r}.") from None
    if not low < high:  # also refuses NaN
        raise ValueError(f"Expected argument `bounds` to be (lo, hi) with lo < hi, but got {bounds!r}.")
    return low, high


def check_points(name: str, x: Any, *, may_be_empty: bool = False) -> None:
    """Raise unless ``x`` is a real floating tensor of shape (N, *) with N ≥ 1. Reads no values: no GPU sync."""
    if not isinstance(x, Tensor):
        raise TypeError(f"Expected argument `{name}` to be a tensor, but got {type(x).__name__}.")
    if type(x).__name__ == "DTensor":  # by name: the import would cost a second, and moved between versions
        raise TypeError(
            f"Expected argument `{name}` to be a plain tensor, this rank's part of the batch, but got a DTensor: the "
            "penalty supports data parallelism (DDP, FSDP2), not tensor parallelism."
        )
    if not x.is_floating_point():
        raise TypeError(
            f"Expected argument `{name}` to be a floating tensor, but got {x.dtype}. A difference quotient needs a "
            "continuous input: for tokens or categories pass their embeddings, with the part of the model above "
            f"them as `model`; convert images with `{name}.float()`."
        )
    if x.dim() == 0 or (x.numel() == 0 and not (may_be_empty and x.shape[1:].numel())):
        raise ValueError(
            f"Expected argument `{name}` to have shape (N, *) with at least one row, but got {tuple(x.shape)}."
        )


def check_rows(name: str, x: Tensor, shape: torch.Size) -> None:
    """Raise ValueError unless the rows of ``x`` have the shape of the stored pairs' rows."""
    if x.shape[1:] != shape:
        raise ValueError(
            f"Expected argument `{name}` to fit the stored pairs, rows of shape {tuple(shape)}, but got "
            f"{tuple(x.shape)}. Use one LipschitzPenalty for each kind of input."
        )


def check_row_numbers(rows: Any) -> Tensor:
    """Return what a penalty's ``choose`` returned; raise TypeError unless it is a list of row numbers."""
    if not isinstance(rows, Tensor) or rows.dtype != torch.int64 or rows.dim() != 1:
        got = f"{rows.dtype} of shape {tuple(rows.shape)}" if isinstance(rows, Tensor) else type(rows).__name__
        raise TypeError(
            f"Expected argument `choose` to return row numbers, an int64 tensor of shape (n,), but got {got}. For a "
            "mask of rows return mask.nonzero().flatten()."
        )
    return rows


def check_values(x: Tensor, bounds: tuple[float, float] | None) -> None:
    """Raise if the batch has non-finite values or lies outside ``bounds``. Reads values: first call only."""
    if not bool(torch.isfinite(x).all()):
        raise ValueError("Expected argument `x` to be finite, but it holds NaN or infinity: check the data loader.")
    if bounds is not None and len(x):
        low, high = float(x.min()), float(x.max())
        if low < bounds[0] or high > bounds[1]:
            raise ValueError(
                f"Expected the data to lie within `bounds` = {bounds}, but `x` spans [{low:g}, {high:g}]. Give the "
                "range of the tensor that the model receives (after normalisation, if that is done in the loader)."
            )


def check_output(y: Any, batch_size: int) -> Tensor:
    """Return the model's output; raise unless it is a floating tensor that keeps the batch axis."""
    hint = "Name the tensor to penalise with `output=`, a function of the model's return value."
    if not isinstance(y, Tensor):
        raise TypeError(f"Expected the model's output to be a tensor, but got {type(y).__name__}. {hint}")
    if not y.is_floating_point():
        raise TypeError(f"Expected the model's output to be a floating tensor, but got {y.dtype}. {hint}")
    if y.dim() == 0 or y.shape[0] != batch_size:
        raise ValueError(
            f"Expected the model's output to keep the batch axis of {batch_size} rows, but got shape "
            f"{tuple(y.shape)}: return one output per row, not a loss or a mean. {hint}"
        )
    return y


def check_state_keys(state: Any, keys: set[str], owner: str) -> None:
    """Raise ValueError unless ``state`` is a dict with these keys."""
    if not isinstance(state, dict) or set(state) != keys:
        got = sorted(map(str, state)) if isinstance(state, dict) else type(state).__name__
        raise ValueError(f"Expected argument `state` to be a state of {owner} with keys {sorted(keys)}, but got {got}.")
