"""Torch's own switches, which hold for the whole process: thrown for a call, and put back when the last has left.

Calls of several threads overlap: if each put back what it had found, one that leaves last would put back another's.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.utils.checkpoint
from torch.nn.utils import parametrize

Hook = Callable[[Any], AbstractContextManager[Any]]


class Switch:
    """A switch of the process that many may hold: the first throws it, the last puts it back."""

    def __init__(
        self,
        read: Callable[[], Any],
        write: Callable[[Any], Any],
        value: Any,
        needed: Callable[[], bool] = lambda: True,
    ) -> None:
        """Leave the switch as it is.

        Args:
            read: Returns what it is set to.
            write: Sets it.
            value: What holders set it to, handed to ``write``.
            needed: Says whether it is to be thrown at all, asked where nobody holds it.
        """
        self._read, self._write, self._value, self._needed = read, write, value, needed
        self._lock, self._holders, self._before = threading.RLock(), 0, None
        self._thrown = False

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the switch for the length of the context."""
        with self._lock:
            holds = self._holders > 0 or self._needed()
            if holds and not self._holders:
                self._before = self._read()
            self._holders += holds
        if not holds:
            yield
            return
        try:
            with self._lock:  # in here, so that one that is thrown by half is put back
                if not self._thrown:
                    self._write(self._value)
                    self._thrown = True
            yield
        finally:
            with self._lock:
                self._holders -= 1
                if not self._holders:
                    self._thrown = False
                    try:
                        self._write(self._before)
                    except BaseException:  # a KeyboardInterrupt fell into that
                        self._write(self._before)
                        raise


# The fused paths of attention and of the transformer encoder are taken without gradients only: with them f(x) under
# `no_grad` and f(x′) with gradients would be two functions, where positions are padded far apart. They have no
# derivatives of higher order and no forward mode either.
one_path_of_attention = Switch(
    torch.backends.mha.get_fastpath_enabled, torch.backends.mha.set_fastpath_enabled, value=False
)


ATTENTION = {"math": True, "flash": False, "mem_efficient": False, "cudnn": False}


def _read_kernels() -> list[bool]:
    attention = [getattr(torch.backends.cuda, f"{name}_sdp_enabled")() for name in ATTENTION]
    return [torch._C._get_cudnn_enabled(), torch._C._get_mkldnn_enabled(), *attention]


def _write_kernels(enabled: list[bool]) -> None:
    # Not by cudnn.flags() and mkldnn.flags(), which read settings of precision that may be of two mixed kinds.
    torch._C._set_cudnn_enabled(enabled[0])
    torch._C._set_mkldnn_enabled(enabled[1])
    for name, value in zip(ATTENTION, enabled[2:], strict=True):
        getattr(torch.backends.cuda, f"enable_{name}_sdp")(value)


# Fused attention and fused RNN kernels have no forward-mode derivative; their plain versions have.
forward_mode_kernels = Switch(_read_kernels, _write_kernels, value=[False, False, *ATTENTION.values()])


# Where the precision of products is set, since torch 2.9: each inherits from those before, unless it is set itself.
PLACES = [("generic", "all"), *(("mkldnn", of) for of in ("all", "matmul", "conv", "rnn"))]


def _read_products() -> list[str]:
    if not hasattr(torch._C, "_get_fp32_precision_getter"):
        return [torch.get_float32_matmul_precision()]
    return [torch._C._get_fp32_precision_getter(*place) for place in PLACES]


def _write_products(precisions: list[str] | None) -> None:
    """Set what is bfloat16 to more precision (None), or all back; from above, so that what inherits does so again."""
    if not hasattr(torch._C, "_get_fp32_precision_getter"):
        torch.set_float32_matmul_precision("high" if precisions is None else precisions[0])
        return
    for i, place in enumerate(PLACES):
        now = torch._C._get_fp32_precision_getter(*place)
        wanted = precisions[i] if precisions is not None else "ieee" if now == "bf16" else now
        if now != wanted:
            torch._C._set_fp32_precision_setter(*place, wanted)


ROUNDED = frozenset(("bf16", "medium"))


# Products of float32 in bfloat16, on processors that are faster so, would round away what close points differ by.
float32_products = Switch(
    _read_products,
    _write_products,
    value=None,
    needed=lambda: not ROUNDED.isdisjoint(_read_products()),  # hardly ever
)


def _read_cache() -> tuple[int, Any]:
    return parametrize._cache_enabled, parametrize._cache


def _write_cache(cache: tuple[int, Any] | None) -> None:
    parametrize._cache_enabled, parametrize._cache = (0, {}) if cache is None else cache


# Weights in parametrize.cached() are those of the loop's mode, perhaps without gradients, and ours would stay there.
no_cached_weights = Switch(_read_cache, _write_cache, value=None, needed=lambda: parametrize._cache_enabled > 0)

DYNAMO = "torch._dynamo.eval_frame"  # slow to import: where nobody has, nothing is compiled


def _read_stance() -> Any:
    return sys.modules[DYNAMO]._stance


def _write_stance(stance: Any) -> None:
    frames = sys.modules[DYNAMO]
    frames._set_stance(frames.DynamoStance("force_eager") if stance is None else stance)


force_eager = Switch(_read_stance, _write_stance, value=None, needed=lambda: DYNAMO in sys.modules)

_hooks = threading.local()  # .stack: those of this thread's contexts, innermost last
_checkpoint_hook: Hook = torch.utils.checkpoint._checkpoint_hook


def _innermost_hook(frame: Any) -> AbstractContextManager[Any]:
    return checkpoint_hook_outside()(frame)


def checkpoint_hook_outside() -> Hook:
    """Return the hook of this thread's innermost context; torch's own outside of all."""
    stack: list[Hook] = getattr(_hooks, "stack", [])
    return stack[-1] if stack else _checkpoint_hook


def _write_checkpoint_hook(hook: Hook) -> None:
    torch.utils.checkpoint._checkpoint_hook = hook  # type: ignore[misc, assignment]


_redirected = Switch(lambda: torch.utils.checkpoint._checkpoint_hook, _write_checkpoint_hook, _innermost_hook)


@contextlib.contextmanager
def checkpoint_hook(hook: Hook) -> Iterator[None]:
    """Let non-reentrant checkpoints of this thread's forwards go through a hook for the length of the context."""
    with _redirected.held():
        stack = _hooks.__dict__.setdefault("stack", [])
        stack.append(hook)
        try:
            yield
        finally:
            stack.pop()
