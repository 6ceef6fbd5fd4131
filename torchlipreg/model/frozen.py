"""FrozenState: the modules as a penalty's forward is to see them, put in place and taken back."""

from __future__ import annotations

import contextlib
import functools
import operator
import threading
from collections.abc import Callable, ItemsView, Iterator
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from torchlipreg.model.batchnorm import can_follow, channel_moments, fold, tracks_batches
from torchlipreg.model.kept import OWN, Kept
from torchlipreg.model.modules import AsFound, as_found, is_wrapper, submodules, unwrap
from torchlipreg.model.parallelism import is_sharded

Moments = tuple[Tensor, Tensor]
FLAGS = frozenset(
    ("training", "dropout", "forward", "_compiled_call_impl", "attention_bias_cache", "_buffers", "_parameters")
)
LARGE = 1 << 18  # numbers in a buffer, from which on a clone in each call would be felt
FIRST, WRITTEN = -2, -1
# Of large buffers: the version that was there at the last call, or that somebody writes them.
_VERSIONS: WeakKeyDictionary[nn.Module, dict[str, int]] = WeakKeyDictionary()


class FrozenState:
    """The frozen values of a list of modules: flags, clones of buffers, BatchNorm that follows a batch.

    Attributes:
        modules: Those that are frozen; others are taken in when they run.
        found: The model outside.
        held: Names of the classes of norms in train mode whose statistics are held constant.
        carries: Each forward starts from the frozen values, because one leaves something for the next.
    """

    def __init__(self, core: Callable[..., Any], modules: list[nn.Module], eager: bool, carries: bool) -> None:
        self._core, self.modules, self.eager, self.carries = core, modules, eager, carries
        self.found: AsFound = as_found(modules)
        self._sharded = is_sharded(modules)
        self._known: set[nn.Module] = set(modules)
        self._kept = Kept()
        self._start: Kept | None = None
        self._thread = threading.get_ident()
        self._large: list[tuple[nn.Module, str]] = []
        # Eval-mode BatchNorm keeps its running statistics for backward by reference: a later train-mode forward
        # would overwrite them, without an error, and the penalty's gradient would be wrong.
        self.buffers = {m: self._private(m) for m in modules if m._buffers}
        tracking = [m for m in self.buffers if tracks_batches(m)]
        self.cannot_follow = bool(tracking) and self._sharded  # FSDP puts parameters in place itself
        following = [] if self.cannot_follow else [m for m in tracking if can_follow(m)]
        self.held = {type(m).__name__ for m in tracking if m not in following and not self.cannot_follow}
        self.following = following
        self.followed: dict[nn.Module, Folded] = {}
        self.refolded: dict[nn.Module, Moments] = {}
        self._handles: list[RemovableHandle] = []

    def follow(self, m: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Serve as a forward pre-hook of BatchNorm: from now on its statistics follow those of this input."""
        moments = channel_moments(args[0] if args else kwargs["input"])
        own = self.followed[m].own if m in self.followed else m._parameters
        self.followed[m] = Folded(own, moments, *fold(cast(Any, m).eps, moments, own, self.buffers[m]))
        self._swap(m)

    def settle(self) -> None:
        """Close a pass in which statistics followed.

        ``torch.func.functional_call`` puts back, on leaving, what it has found on a module: there the folded values
        are put in place anew by hooks around each forward of the norm.
        """
        overwritten = [m for m, folded in self.followed.items() if not folded.is_in(m)]
        if overwritten:
            self._kept.put_back_containers()  # the user's dict of parameters among them
        for m in overwritten:
            folded = self.followed.pop(m)
            m.__dict__["_parameters"] = folded.own
            self._swap(m)
            self.refolded[m] = folded.moments
            self._refold(m)
        if self.carries:
            self.note_start()

    def _refold(self, m: nn.Module) -> None:
        aside: list[tuple[dict[str, Any], dict[str, Any]]] = []

        def before(m: Any, args: Any) -> None:
            aside.append((m._parameters, m._buffers))
            values = m.__dict__
            values["_parameters"], values["_buffers"] = fold(m.eps, self.refolded[m], m._parameters, m._buffers)

        def after(m: Any, args: Any, output: Any) -> None:
            m.__dict__["_parameters"], m.__dict__["_buffers"] = aside.pop()

        self._handles += [m.register_forward_pre_hook(before), m.register_forward_hook(after, always_call=True)]

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Put the frozen values in place, and the modules' own ones back on leaving."""
        outside = self._kept, self._start, self._handles
        self._kept, self._handles = Kept(FLAGS if self._sharded else None), []
        try:
            self._kept.note_function(self._core)
            for m in self.modules:
                self._freeze(m)
            for m in self.refolded:
                self._refold(m)
            if self.carries:
                self.note_start()
            yield
        finally:
            try:
                self._kept.put_back()
            finally:  # once more, if a KeyboardInterrupt fell into that
                self._kept.put_back()
                for handle in self._handles:
                    handle.remove()
                self._note_versions()
                self._kept, self._start, self._handles = outside

    def meet(self, m: nn.Module, args: Any) -> None:
        """Serve as a forward pre-hook of all modules: take in one that runs, but was not found."""
        if m in self._known or threading.get_ident() != self._thread:
            return
        for part in submodules(m):
            if part not in self._known:
                self._known.add(part)
                self.modules.append(part)
                self.found = self.found.with_module(part)
                if part._buffers:
                    self.buffers[part] = self._private(part)
                if tracks_batches(part):
                    self.held.add(type(part).__name__)
                self._freeze(part)

    def renew(self) -> None:
        """Let the next forward start from the frozen values, if forwards leave something for the next."""
        if self.carries and self._start is not None:
            self._start.put_back()
            for m in self.buffers:
                m.__dict__["_buffers"] = {name: None if b is None else b.clone() for name, b in self._frozen_buffers(m)}

    def left_something(self) -> bool:
        """Say whether forwards have changed attributes, buffers or what hooks collect."""
        buffers = (b for m in self.buffers for b in m.__dict__["_buffers"].values() if b is not None)
        return self._start is not None and (self._start.differs() or any(b._version > 0 for b in buffers))

    def note_start(self) -> None:
        """Note what a forward is to start from, for ``renew`` and ``left_something``."""
        self._start = Kept(FLAGS if self._sharded else None)
        for m in self.modules:
            self._start.note(m)

    def _swap(self, m: nn.Module) -> None:
        if m in self.followed:
            m.__dict__["_parameters"] = self.followed[m].parameters
            m.__dict__["_buffers"] = self.followed[m].buffers.copy()
        else:
            m.__dict__["_buffers"] = self.buffers[m].copy()

    def _freeze(self, m: nn.Module) -> None:
        self._kept.note(m)
        values, needs_train_mode = m.__dict__, _runs_on_cudnn(m)
        # The flag, not eval(): an overridden train() may edit weights, as LoRA's merge does. cuDNN's RNN backward needs
        # train mode, so its dropout goes instead.
        if "training" in values:  # OptimizedModule has no flag of its own
            values["training"] = needs_train_mode
        if needs_train_mode:
            values["dropout"] = 0.0
        if is_wrapper(m):  # reached through a function: see modules.unwrap
            values["forward"] = unwrap(m)
        elif "_original_forward" in values:  # Accelerate's mixed precision enters autocast inside model.forward
            values["forward"] = values["_original_forward"]
        if self.eager and "_compiled_call_impl" in values:
            values["_compiled_call_impl"] = None  # of m.compile(), in place
        if "attention_bias_cache" in values:  # of timm's LeViT and others, filled in eval mode: would keep a graph
            values["attention_bias_cache"] = {}
        if not self.eager and values.get("gradient_checkpointing") and _is_checkpointing_layer(m):
            values["forward"] = _checkpointed(m, values.get("forward", functools.partial(type(m).forward, m)))
        if len(values) > len(OWN):
            for name, value in values.items():
                if type(value) is Tensor and not value.requires_grad and value.numel() < LARGE:
                    values[name] = value.clone()  # which a forward may write in place
        if m in self.buffers:
            self._swap(m)

    def _frozen_buffers(self, m: nn.Module) -> ItemsView[str, Tensor | None]:
        return (self.followed[m].buffers if m in self.followed else self.buffers[m]).items()

    def _private(self, m: nn.Module) -> dict[str, Tensor | None]:
        """Return clones of a module's buffers; of large ones only where somebody writes them."""
        return {name: None if b is None else self._clone_if_written(m, name, b) for name, b in m._buffers.items()}

    def _clone_if_written(self, m: nn.Module, name: str, b: Tensor) -> Tensor:
        if b.numel() < LARGE or b.is_inference():
            return b.detach().clone()
        self._large.append((m, name))
        versions = _VERSIONS.setdefault(m, {})
        before = versions.setdefault(name, b._version if name in versions else FIRST)
        if before not in (FIRST, b._version):
            versions[name] = WRITTEN
        return b if versions[name] == b._version else b.detach().clone()

    def _note_versions(self) -> None:
        for m, name in self._large:
            b, private, versions = m._buffers.get(name), self.buffers[m].get(name), _VERSIONS[m]
            if b is None or private is None or versions[name] == WRITTEN:
                continue
            written = private._version > 0 if private is not b else b._version != versions[name]
            versions[name] = WRITTEN if written else b._version


class Folded:
    """Parameters and buffers of a BatchNorm whose statistics follow a batch, as they were put in place."""

    def __init__(
        self,
        own: dict[str, Any],
        moments: Moments,
        parameters: dict[str, Any],
        buffers: dict[str, Tensor | None],
    ) -> None:
        self.own, self.moments, self.parameters, self.buffers = own, moments, parameters, buffers
        self._placed = list(parameters.values())

    def is_in(self, m: nn.Module) -> bool:
        """Say whether they are still in place on a module."""
        parameters, buffers = m.__dict__["_parameters"], m.__dict__["_buffers"]
        return (
            parameters is self.parameters
            and all(map(operator.is_, parameters.values(), self._placed))
            and all(map(operator.is_, buffers.values(), self.buffers.values()))
        )


def _runs_on_cudnn(m: nn.Module) -> bool:
    """Say whether a module is one of torch's RNNs on a GPU; a subclass may read the flag for a dropout of its own."""
    if type(m) not in (nn.RNN, nn.LSTM, nn.GRU):
        return False
    return any(p is not None and p.is_cuda for p in m._parameters.values())


def _is_checkpointing_layer(m: nn.Module) -> bool:
    """Say whether a module is one of transformers' layers that recompute in backward, in train mode only."""
    return any(c.__name__ == "GradientCheckpointingLayer" for c in type(m).__mro__)


def _checkpointed(m: Any, forward: Callable[..., Any]) -> Callable[..., Any]:
    def checkpointed(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return m._gradient_checkpointing_func(functools.partial(forward, **kwargs), *args)

    return checkpointed
