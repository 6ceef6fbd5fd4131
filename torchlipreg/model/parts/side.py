"""Side inputs: what else a model takes by name, with rows that come along where a part of the batch is used."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from torchlipreg.geometry.norms import per_row

SideRows = dict[str, Tensor]  # a row for each point
Kwargs = Mapping[str, Any] | None  # as the user gives them


def split_side(
    model_kwargs: Kwargs, batch_size: int, names: Collection[str] | None = None
) -> tuple[SideRows, dict[str, Any]]:
    """Tell tensors with a row for each point of the batch from the rest.

    Args:
        model_kwargs: As the user gave them. Sparse and nested tensors are constants, as a graph's adjacency.
        batch_size: Points in the loop's batch.
        names: Of those with rows, where that is known: a constant may happen to be as long as the batch.

    Returns:
        The rows, detached, and everything else.
    """
    rows: SideRows = {}
    rest: dict[str, Any] = {}
    if not model_kwargs:
        return rows, rest
    for name, value in model_kwargs.items():
        has_rows = isinstance(value, Tensor) and value.layout == torch.strided and not value.is_nested
        if has_rows and value.dim() > 0 and len(value) == batch_size and (names is None or name in names):
            rows[name] = value.detach()
        else:
            rest[name] = value
    return rows, rest


def take_rows(side: SideRows, rows: Tensor | slice | None) -> SideRows:
    """Return the side inputs of some points; of all for None."""
    return side if rows is None else {name: value[rows] for name, value in side.items()}


def where_rows(keep: Tensor, side: SideRows, other: SideRows) -> SideRows:
    """Return these side inputs where ``keep``, shape (N,), is true, and the others elsewhere."""
    return {name: torch.where(per_row(keep, ours), ours, other[name]) for name, ours in side.items()}


def fit_rows(side: SideRows, count: int) -> SideRows:
    """Return side inputs for ``count`` points that are these points a whole number of times, one set after another.

    Both points of a pair are seen with the same side inputs. A rank without data takes part with a point of zeros.
    """
    return {name: _fit(value, count) for name, value in side.items()}


def _fit(value: Tensor, count: int) -> Tensor:
    if len(value) == count:
        return value
    if len(value) == 0:
        return value.new_zeros(count, *value.shape[1:])
    return torch.cat([value] * (count // len(value)))


def check_side(side: SideRows, previous: SideRows) -> None:
    """Raise ValueError unless a batch has side inputs like those that are kept with persistent pairs."""
    now, before = ({name: tuple(value.shape[1:]) for name, value in rows.items()} for rows in (side, previous))
    if now != before:
        raise ValueError(
            "Expected argument `model_kwargs` to hold a row for each point of `x` under the names and with the shapes "
            f"of the calls before, {before}, but got {now}: persistent pairs keep those of the points they started at."
        )
