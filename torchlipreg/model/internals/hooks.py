"""Hooks: ours on modules for the length of a context, the user's on parameters set aside."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor
from torch.utils.hooks import RemovableHandle


@contextlib.contextmanager
def registered(register: Callable[..., RemovableHandle], hook: Callable[..., Any], **how: bool) -> Iterator[None]:
    """Register a hook for the length of the context."""
    handle = None
    try:
        handle = register(hook, **how)
        yield
    finally:
        if handle is not None:
            handle.remove()


@contextlib.contextmanager
def set_aside(weights: list[Tensor]) -> Iterator[None]:
    """Keep the user's hooks on parameters from a gradient that is none of the training's."""
    hooks = [w._backward_hooks for w in weights]
    try:
        for w in weights:
            w._backward_hooks = None
        yield
    finally:
        for w, own in zip(weights, hooks, strict=True):
            w._backward_hooks = own
