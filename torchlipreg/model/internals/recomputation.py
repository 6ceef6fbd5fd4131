"""Gradient checkpoints inside a penalty: they recompute with the model frozen as it was in the forward."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch

from torchlipreg.model.internals.switches import checkpoint_hook_outside


def recomputing_under(state: Callable[[], AbstractContextManager[Any]]) -> Callable[[Any], Any]:
    """Return a checkpoint hook that recomputes in a state of the model, given as a context."""
    # A non-reentrant checkpoint runs its forward again during backward, when the modules are back in train mode:
    # its recomputation is wrapped so that it sees the frozen state again.
    original = checkpoint_hook_outside()

    def hook(frame: Any) -> Any:
        recompute = frame.recompute_fn

        def recompute_frozen(*args: Any) -> None:
            with state():
                recompute(*args)

        frame.recompute_fn = recompute_frozen
        return original(frame)

    return hook


def recomputes(m: Any) -> bool:
    """Say whether a module is one of transformers' layers that recompute in backward, in train mode only."""
    return m.gradient_checkpointing and any(c.__name__ == "GradientCheckpointingLayer" for c in type(m).__mro__)


def checkpointed(m: Any, forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return the forward of such a layer that recomputes in eval mode, too."""

    def forward_again(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        # A model in eval mode caches what its layers have seen, and one that recomputes would see it a second time. A
        # cache that is new to the forward, with nothing in it, is of no use there: as in train mode, there is none.
        kwargs = {name: None if _is_empty_cache(value) else value for name, value in kwargs.items()}
        if any(map(_is_cache, (*args, *kwargs.values()))):
            return forward(*args, **kwargs)
        if "use_cache" in kwargs:
            kwargs["use_cache"] = False
        return m._gradient_checkpointing_func(partial(forward, **kwargs), *args)

    return forward_again


def _is_cache(value: Any) -> bool:
    return any(c.__name__.endswith("Cache") for c in type(value).__mro__)


def _is_empty_cache(value: Any) -> bool:
    try:
        return _is_cache(value) and int(value.get_seq_length()) == 0
    except (AttributeError, TypeError, ValueError):  # of a state that has no length, as Mamba's
        return False
