"""FrozenState: the modules' flags and buffers as a penalty's forward is to see them, put in place and taken back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, cast

from torch import Tensor, nn

from torchlipreg.model.batchnorm import can_follow, follow, tracks_batches
from torchlipreg.model.parallelism import is_sharded


class FrozenState:
    """The frozen values of a list of modules: flags, one clone of every buffer, BatchNorm that follows a batch."""

    def __init__(self, modules: list[nn.Module], eager: bool) -> None:
        self.modules, self.eager = modules, eager
        # Eval-mode BatchNorm keeps its running statistics for backward by reference: a later train-mode forward
        # would overwrite them, without an error, and the penalty's gradient would be wrong.
        self.buffers: dict[nn.Module, dict[str, Tensor | None]] = {
            m: {name: None if b is None else b.detach().clone() for name, b in m._buffers.items()}
            for m in modules
            if m._buffers
        }
        tracking = [m for m in self.buffers if tracks_batches(m)]
        self.cannot_follow = bool(tracking) and is_sharded(modules)  # FSDP puts parameters in place itself
        following = [] if self.cannot_follow else [m for m in tracking if can_follow(m)]
        self.originals = {m: (m._parameters, self.buffers[m]) for m in following}
        self.followed: dict[nn.Module, dict[str, Any]] = {m: values for m, (values, _) in self.originals.items()}

    def follow(self, m: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Serve as a forward pre-hook of BatchNorm: from now on its statistics follow those of this input."""
        h = args[0] if args else kwargs["input"]
        self.followed[m], self.buffers[m] = follow(cast(Any, m).eps, h, *self.originals[m])
        self._swap(m)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Put the frozen values in place, and the modules' own ones back on leaving."""
        undo: list[tuple[dict[str, Any], str, Any]] = []
        try:
            for m in self.modules:
                self._freeze(m, undo)
            for m in self.buffers:
                undo += [(m.__dict__, name, m.__dict__[name]) for name in ("_buffers", "_parameters")]
                self._swap(m)
            yield
        finally:
            for values, name, value in reversed(undo):
                values[name] = value

    def _swap(self, m: nn.Module) -> None:
        m.__dict__["_buffers"] = dict(self.buffers[m])
        if m in self.followed:
            m.__dict__["_parameters"] = self.followed[m]

    def _freeze(self, m: nn.Module, undo: list[tuple[dict[str, Any], str, Any]]) -> None:
        values, needs_train_mode = m.__dict__, _runs_on_cudnn(m)
        # The flag, not eval(): an overridden train() may edit weights, as LoRA's merge does. cuDNN's RNN backward needs
        # train mode, so its dropout goes instead.
        _put(values, "training", needs_train_mode, undo)
        if needs_train_mode:
            _put(values, "dropout", 0.0, undo)
        if "_original_forward" in values:  # Accelerate's mixed precision enters autocast inside model.forward
            _put(values, "forward", values["_original_forward"], undo)
        if self.eager:
            _put(values, "_compiled_call_impl", None, undo)  # of m.compile(), in place
        if "attention_bias_cache" in values:  # of timm's LeViT and others, filled in eval mode: would keep a graph
            _put(values, "attention_bias_cache", {}, undo)


def _put(values: dict[str, Any], name: str, value: Any, undo: list[tuple[dict[str, Any], str, Any]]) -> None:
    old = values.get(name, value)  # OptimizedModule has no flag of its own
    if old is not value:
        undo.append((values, name, old))
        values[name] = value


def _runs_on_cudnn(m: nn.Module) -> bool:
    """Say whether a module is one of torch's RNNs on a GPU; a subclass may read the flag for a dropout of its own."""
    if type(m) not in (nn.RNN, nn.LSTM, nn.GRU):
        return False
    return any(p is not None and p.is_cuda for p in m._parameters.values())
