"""Gradient checkpoints inside a penalty: they recompute with the model frozen as it was in the forward."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch.utils.checkpoint


def recomputing_under(state: Callable[[], AbstractContextManager[None]]) -> Callable[[Any], Any]:
    """Return a checkpoint hook that recomputes in a state of the model, given as a context."""
    # A non-reentrant checkpoint runs its forward again during backward, when the modules are back in train mode:
    # its recomputation is wrapped so that it sees the frozen state again.
    original = torch.utils.checkpoint._checkpoint_hook

    def hook(frame: Any) -> Any:
        recompute = frame.recompute_fn

        def recompute_frozen(*args: Any) -> None:
            with state():
                recompute(*args)

        frame.recompute_fn = recompute_frozen
        return original(frame)

    return hook


@contextlib.contextmanager
def checkpoint_hook(replacement: Any) -> Iterator[None]:
    """Put a hook in the place of torch's own for the length of the context."""
    original = torch.utils.checkpoint._checkpoint_hook
    torch.utils.checkpoint._checkpoint_hook = replacement  # type: ignore[misc]
    try:
        yield
    finally:
        torch.utils.checkpoint._checkpoint_hook = original  # type: ignore[misc]
