"""Checks of tensors: batches on their way in, a model's outputs on their way back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchlipreg.geometry.units import Units, as_plain


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


def check_points(name: str, x: Any, *, may_be_empty: bool = False) -> None:
    """Raise unless ``x`` is a real floating tensor of shape (N, *) with N ≥ 1. Reads no values: no GPU sync."""
    if not isinstance(x, Tensor):
        several = " Of several, as crops or views, call once for each." if isinstance(x, (list, tuple)) else ""
        raise TypeError(f"Expected argument `{name}` to be a tensor, but got {type(x).__name__}.{several}")
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
    if x.is_nested:
        raise TypeError(
            f"Expected argument `{name}` to be a dense tensor, but got a nested one: pass "
            f"`{name}.to_padded_tensor(0.0)`."
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
        if lies_outside(x, bounds):
            raise ValueError(
                f"Expected the data to lie within `bounds` = {bounds}, but `{name}` spans [{low:g}, {high:g}]. Give "
                "the range of what the model receives, or, if the loader normalises, the raw one and `normalization`."
            )


def lies_outside(x: Tensor, bounds: tuple[float, float]) -> Tensor:
    """Say whether a finite coordinate of x lies outside of the bounds, by more than rounding: 0-dim, bool."""
    rounding = 8 * torch.finfo(x.dtype).eps * max(map(abs, bounds))
    return (((x < bounds[0] - rounding) | (x > bounds[1] + rounding)) & x.isfinite()).any()


def check_output(y: Any, batch_size: int) -> Tensor:
    """Return the model's output as a plain tensor; raise unless it is a floating tensor that keeps the batch axis."""
    hint = "Pick the tensor with `output=`, a function of the model's return value, or in a function around the model."
    if not isinstance(y, Tensor):
        raise TypeError(f"Expected the model's output to be a tensor, but got {type(y).__name__}. {hint}")
    if not y.is_floating_point():
        raise TypeError(f"Expected the model's output to be a floating tensor, but got {y.dtype}. {hint}")
    if y.is_nested:
        raise TypeError(f"Expected the model's output to be a dense tensor, but got a nested one. {hint}")
    if y.dim() == 0 or y.shape[0] != batch_size:
        raise ValueError(
            f"Expected the model's output to keep the batch axis of {batch_size} rows, but got shape "
            f"{tuple(y.shape)}: return one output per row, not a loss or a mean. {hint}"
        )
    return as_plain(y)
