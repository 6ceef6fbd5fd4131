"""Reductions over all ranks: the only file with collectives, and a no-op on one process."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Return the number of processes, 1 without an initialised process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return this process's rank, 0 without an initialised process group."""
    return dist.get_rank() if world_size() > 1 else 0


def reduce_mean(total: Tensor, count: Tensor, extreme: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of the values of all ranks, with the gradient that data parallelism expects.

    Collective: one gather of three numbers per rank. Ranks may hold different counts. The value is the same on every
    rank; its gradient is W · (local sum) / (global count), so that averaging gradients over the W ranks gives the
    gradient of the global mean.

    Args:
        total: Sum of this rank's values, 0-dim.
        count: Number of this rank's values, 0-dim, floating.
        extreme: A detached number of this rank, 0-dim, whose largest over all ranks is wanted as well.

    Returns:
        The mean, 0-dim, 0 if there are no values; and the largest ``extreme``, 0-dim.
    """
    if world_size() == 1:
        return total / count.clamp_min(1), extreme
    totals, counts, extremes = _gather(torch.stack([total.detach(), count, extreme])).unbind(1)
    count = counts.sum().clamp_min(1)
    return _with_value(world_size() * total / count, totals.sum() / count), extremes.amax()


def reduce_max(values: Tensor) -> Tensor:
    """Return the largest value of all ranks, with the gradient that data parallelism expects.

    Collective: one gather of one number per rank. The first rank that holds the maximum contributes W times its own,
    the others zero, so that averaging gradients over the W ranks gives the gradient of the global maximum.

    Args:
        values: Shape (N,), N ≥ 1.

    Returns:
        The maximum, 0-dim.
    """
    local = values.gather(0, values.argmax(0, keepdim=True)).squeeze(0)  # one owner also among equal values
    if world_size() == 1:
        return local
    maxima = _gather(local.detach().unsqueeze(0)).squeeze(1)
    ranks = torch.arange(world_size(), device=maxima.device)
    first = torch.where(maxima == maxima.amax(), ranks, world_size()).amin()  # argmax may name any of equal values
    return _with_value(world_size() * local * (first == rank()), maxima.amax())


def largest(value: Tensor) -> Tensor:
    """Return the largest of a detached tensor over all ranks, element by element. Collective."""
    return value if world_size() == 1 else _gather(value.reshape(-1)).amax(0).view_as(value)


def largest_or_raise(value: Tensor, error: Exception | None) -> float:
    """Return the largest value over all ranks, or raise on every rank if there is an error on one.

    An error on one rank alone would leave the others waiting in their next collective. Collective; reads the value.

    Args:
        value: Of this rank, 0-dim.
        error: Of this rank, or None.

    Returns:
        The largest value.

    Raises:
        RuntimeError: If another rank has an error; its own message is there.
    """
    failed = torch.full_like(value, error is not None)
    number, any_failed = largest(torch.stack([value, failed])).tolist()
    if error is not None:
        raise error
    if any_failed:
        raise RuntimeError("The penalty was refused on another rank: see the error that was raised there.")
    return float(number)


def _with_value(gradient: Tensor, value: Tensor) -> Tensor:
    return value + (gradient - gradient.detach())


def _gather(row: Tensor) -> Tensor:
    """Return the rows of all ranks, shape (W, n), from one row each, shape (n,)."""
    table = row.new_empty(world_size() * len(row))  # gloo takes no table of two dimensions
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # its name before torch 2.14
    gather(table, row)
    return table.view(world_size(), -1)


def gather_objects(value: Any) -> list[Any]:
    """Return the values of all ranks, in their order. Collective, by pickling: for saving, not for training steps."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values
