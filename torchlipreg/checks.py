"""Checks of the user's input: each names the argument, what was expected, what came, and the way out."""

from __future__ import annotations

import difflib
import functools
import inspect
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec

import torch
from torch import Tensor

from torchlipreg.geometry.norms import NORMS
from torchlipreg.geometry.units import Units, as_plain

P = ParamSpec("P")
Normalization = tuple[float | Sequence[float], float | Sequence[float]]  # mean and standard deviation, perhaps of each


def suggest_names(function: Callable[P, None]) -> Callable[P, None]:
    """Let a constructor answer an unknown keyword with the nearest one that it has."""
    names = list(inspect.signature(function).parameters)

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> None:
        for name in kwargs:
            if name not in names:
                nearest = difflib.get_close_matches(name, names, 1, 0.0)[0]
                raise TypeError(
                    f"Unknown argument `{name}`. Did you mean `{nearest}`? There are {', '.join(names[1:])}."
                )
        function(*args, **kwargs)

    return checked


def check_choice(name: str, value: Any, choices: Sequence[Any]) -> None:
    """Raise ValueError unless ``value`` is one of ``choices``."""
    if isinstance(value, bool) or not isinstance(value, (str, numbers.Real)) or value not in choices:
        raise ValueError(f"Expected argument `{name}` to be one of {', '.join(map(repr, choices))}, but got {value!r}.")


def check_norm(name: str, p: Any) -> None:
    """Raise ValueError unless ``p`` is 1, 2 or ``math.inf``."""
    if isinstance(p, str):
        raise ValueError(f"Expected argument `{name}` to be 1, 2 or math.inf, a number, but got {p!r}.")
    check_choice(name, p, NORMS)


def check_number(name: str, value: Any, *, low: float = 0.0, exclusive: bool = False) -> float:
    """Return ``value`` as a float; raise unless it is a finite real number ≥ ``low`` (> if ``exclusive``)."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"Expected argument `{name}` to be a number, but got {value!r} ({type(value).__name__}).")
    if not math.isfinite(value) or value < low or (exclusive and value == low):
        raise ValueError(
            f"Expected argument `{name}` to be finite and {'>' if exclusive else '>='} {low:g}, but got {value!r}."
        )
    return float(value)


def check_count(name: str, value: Any, *, low: int = 1) -> int:
    """Return ``value`` as an int; raise unless it is an integer ≥ ``low``."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"Expected argument `{name}` to be an integer, but got {value!r} ({type(value).__name__}).")
    if value < low:
        raise ValueError(f"Expected argument `{name}` to be at least {low}, but got {value!r}.")
    return int(value)


def check_flag(name: str, value: Any) -> None:
    """Raise TypeError unless ``value`` is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"Expected argument `{name}` to be True or False, but got {value!r}.")


def check_mapping(name: str, value: Any) -> None:
    """Raise TypeError unless ``value`` is a mapping from strings or None."""
    if value is not None and not (isinstance(value, Mapping) and all(isinstance(key, str) for key in value)):
        raise TypeError(f"Expected argument `{name}` to be a dict from names to values, or None, but got {value!r}.")


def check_function(name: str, value: Any) -> None:
    """Raise TypeError unless ``value`` is callable or None."""
    if not (value is None or callable(value)):
        raise TypeError(f"Expected argument `{name}` to be callable or None, but got {value!r}.")


def check_normalization(normalization: Any) -> Units | None:
    """Return (mean, std) as tuples of equal length, or None; raise otherwise."""
    if normalization is None:
        return None
    try:
        mean, std = (_numbers(values) for values in normalization)
    except (TypeError, ValueError):
        raise TypeError(
            "Expected argument `normalization` to be (mean, std), numbers or one of each per channel, but got "
            f"{normalization!r}."
        ) from None
    if len(mean) == 1 or len(std) == 1:  # a number for all channels beside one for each
        length = max(len(mean), len(std))
        mean, std = (values * length if len(values) == 1 else values for values in (mean, std))
    if not mean or len(mean) != len(std) or not all(map(math.isfinite, mean)):
        raise ValueError(
            "Expected argument `normalization` to hold as many finite means as standard deviations, but got "
            f"{len(mean)} and {len(std)}: {normalization!r}."
        )
    if not all(math.isfinite(s) and s > 0 for s in std):
        raise ValueError(f"Expected argument `normalization` to have finite std > 0, but got std={std!r}.")
    return Units(mean, std)


def _numbers(values: Any) -> tuple[float, ...]:
    values = values.tolist() if isinstance(values, Tensor) else values
    values = [values] if isinstance(values, numbers.Real) else list(values)
    if any(isinstance(v, (bool, str)) or not isinstance(v, numbers.Real) for v in values):
        raise TypeError
    return tuple(float(v) for v in values)


def check_channels(name: str, x: Tensor, units: Units) -> None:
    """Raise ValueError unless ``x`` has a channel (axis 1) for each mean of the normalisation."""
    count = len(units.mean)
    if count > 1 and (x.dim() < 2 or x.shape[1] != count):
        raise ValueError(
            f"Expected argument `{name}` to have {count} channels on axis 1, as many as `normalization` has means, "
            f"but got shape {tuple(x.shape)}."
        )


def in_raw_units(x: Tensor, units: Units | None, name: str = "x") -> Tensor:
    """Return a batch in raw units, its channels checked, without a graph."""
    x = (x.clone() if x.is_inference() else x).detach()
    x = as_plain(x)
    if units is None:
        return x
    check_channels(name, x, units)
    return units.raw(x)


def check_bounds(bounds: Any, units: Units | None = None) -> tuple[float, float] | None:
    """Return ``bounds`` as two floats (lo < hi) or None; raise otherwise, or if they look like normalised units."""
    if bounds is None:
        return None
    try:
        low, high = _numbers(bounds)
    except (TypeError, ValueError):
        raise TypeError(f"Expected argument `bounds` to be two numbers (lo, hi), but got {bounds!r}.") from None
    if not low < high:  # also refuses NaN
        raise ValueError(f"Expected argument `bounds` to be (lo, hi) with lo < hi, but got {bounds!r}.")
    if units is not None and low < 0 and high > 1 and all(0 < m < 1 for m in units.mean):
        raise ValueError(
            f"Expected argument `bounds` in raw units, (0, 1) for images, but got {bounds!r}, which look like those of "
            "normalised images: with `normalization`, radius, bounds and norms are told in raw units."
        )
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
    if x.layout != torch.strided or x.is_meta:
        got = "one on the device meta" if x.is_meta else f"one of layout {x.layout}: pass `{name}.to_dense()`"
        raise TypeError(f"Expected argument `{name}` to be a dense tensor with values, but got {got}.")
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


def check_row_numbers(rows: Any, count: int, *, reads: bool) -> Tensor:
    """Return what ``choose`` returned; raise unless it is row numbers (of ``count`` rows, if it ``reads``)."""
    if not isinstance(rows, Tensor) or rows.dtype != torch.int64 or rows.dim() != 1:
        got = f"{rows.dtype} of shape {tuple(rows.shape)}" if isinstance(rows, Tensor) else type(rows).__name__
        raise TypeError(
            f"Expected argument `choose` to return row numbers, an int64 tensor of shape (n,), but got {got}. For a "
            "mask of rows return mask.nonzero().flatten()."
        )
    if reads and len(rows):
        low, high = int(rows.min()), int(rows.max())
        if low < -count or high >= count:
            got = f"numbers from {low} to {high}"
            raise ValueError(f"Expected argument `choose` to return rows of a batch of {count} rows, but got {got}.")
    return rows


def check_values(name: str, x: Tensor, bounds: tuple[float, float] | None) -> None:
    """Raise if the batch has non-finite values or lies outside ``bounds``. Reads values: first call only."""
    if not bool(torch.isfinite(x).all()):
        raise ValueError(
            f"Expected argument `{name}` to be finite, but it holds NaN or infinity: check the data loader."
        )
    if bounds is not None and len(x):
        low, high = map(float, x.aminmax())
        rounding = 8 * torch.finfo(x.dtype).eps * max(map(abs, (low, high, *bounds)))
        if low < bounds[0] - rounding or high > bounds[1] + rounding:
            raise ValueError(
                f"Expected the data to lie within `bounds` = {bounds}, but `{name}` spans [{low:g}, {high:g}]. Give "
                "the range of what the model receives, or, if the loader normalises, the raw one and `normalization`."
            )


def check_output(y: Any, batch_size: int) -> Tensor:
    """Return the model's output as a plain tensor; raise unless it is a floating tensor that keeps the batch axis."""
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
    return as_plain(y)


def check_state_keys(state: Any, keys: set[str], owner: str) -> None:
    """Raise ValueError unless ``state`` is a dict with these keys."""
    if not isinstance(state, dict) or set(state) != keys:
        got = sorted(map(str, state)) if isinstance(state, dict) else type(state).__name__
        raise ValueError(f"Expected argument `state` to be a state of {owner} with keys {sorted(keys)}, but got {got}.")
