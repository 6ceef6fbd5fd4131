"""Batches: from what users have, a tensor or a loader, to the tensors that are measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from torchlipreg.tensor_checks import check_points


def check_inputs(inputs: Any) -> None:
    """Raise TypeError unless ``inputs`` is a tensor or an iterable of batches, not of samples."""
    of_samples = isinstance(inputs, Dataset) and not isinstance(inputs, IterableDataset)
    if of_samples or not any(hasattr(inputs, method) for method in ("__iter__", "__getitem__")):
        hint = (
            " Give a DataLoader of it, whose items are batches (with batch_size=None if its own are)."
            if of_samples
            else ""
        )
        raise TypeError(
            "Expected argument `inputs` to be a tensor or an iterable of batches, but got "
            f"{type(inputs).__name__}.{hint}"
        )


def batches_of(inputs: Tensor | Iterable[Any], batch_size: int) -> Iterator[Tensor]:
    """Return the tensors to measure, shape (N, *): parts of one, or what each batch is or begins with."""
    if isinstance(inputs, Tensor):
        check_points("inputs", inputs)
        inputs = torch.split(inputs, batch_size)
    for batch in inputs:
        if isinstance(batch, Mapping):
            raise TypeError(
                "Expected argument `inputs` to give tensors, or tuples that begin with one, but got a batch of type "
                f'{type(batch).__name__}. Pick the tensor: (batch["x"] for batch in loader).'
            )
        x = batch[0] if isinstance(batch, (tuple, list)) else batch
        check_points("inputs", x)
        yield x


def joined(batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """Let a row that is alone in its batch, and would have no partner there, join the batch before."""
    held: Tensor | None = None
    for x in batches:
        if held is not None and len(held) > 1 and len(x) == 1 and x.shape[1:] == held.shape[1:]:
            held = torch.cat([held, x])
            continue
        if held is not None:
            yield held
        held = x
    if held is not None:
        yield held


def with_progress_bar(batches: Iterable[Tensor]) -> Iterable[Tensor]:
    """Show a progress bar over batches; ImportError without tqdm."""
    try:
        from tqdm.auto import tqdm
    except ImportError:
        raise ImportError('`progress`=True needs tqdm: pip install "torchlipreg[progress]"') from None
    bar: Iterable[Tensor] = tqdm(batches, desc="lipschitz_lower_bound")
    return bar
