"""FrozenState: the modules as a penalty's forward is to see them, put in place and taken back."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection, Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from torchlipreg.model.internals.graph import in_backward
from torchlipreg.model.internals.hooks import registered
from torchlipreg.model.norms.following import Following
from torchlipreg.model.parts.modules import (
    REFUSED,
    AsFound,
    as_found,
    compiled_module,
    remember_unregistered,
    submodules,
)
from torchlipreg.model.parts.parallelism import is_sharded, is_wrapped_by_fsdp1
from torchlipreg.model.switched_off import switch_off
from torchlipreg.model.traces.buffers import PrivateBuffers, once, widen
from torchlipreg.model.traces.kept import Kept
from torchlipreg.model.traces.plain_tensors import PlainTensors

UNDER_FSDP1 = frozenset(  # what is put back there: everything else belongs to FSDP
    ("training", "dropout", "forward", "_compiled_call_impl", "attention_bias_cache", "_buffers", "_parameters")
)


class FrozenState:
    """The frozen values of a list of modules: flags, clones of buffers, BatchNorm that follows a batch.

    Attributes:
        modules: Those that are frozen; others are taken in when they run.
        found: The model outside.
        is_sharded: FSDP shards the model.
        met_inexact: A module that was not found has run, with which the loop's outputs are not those of f.
        reruns: A module has run in a backward of this function, and in no checkpoint.
        norms: BatchNorm whose statistics follow a batch, and norms that give reason for caution.
        stateful: Each forward starts from the frozen values, because one leaves something for the next.
        per_position: The last output was one for each position.
    """

    def __init__(
        self,
        core: Callable[..., Any],
        modules: list[nn.Module],
        *,
        eager: bool = False,
        stateful: bool = True,
        double: bool = False,
        others: Collection[Any] = (),
    ) -> None:
        """Clone the buffers.

        Args:
            core: The model, unwrapped.
            modules: Those that it runs.
            eager: Step around ``torch.compile``.
            stateful: Each forward starts from the frozen values, because one leaves something for the next.
            double: Compute in float64, with copies of the parameters, which get no gradient.
            others: What the model is called with beside its input: containers and objects may be written.
        """
        self._others = [value for value in others if not isinstance(value, (Tensor, nn.Module))]
        self._core, self.modules, self.eager, self.stateful, self._double = core, modules, eager, stateful, double
        self.found: AsFound = as_found(modules)
        self.met_inexact = self.per_position = self.reruns = self._recomputes = False
        self.is_sharded = is_sharded(modules)
        self._is_fsdp1 = self.is_sharded and is_wrapped_by_fsdp1(modules)
        self._known: set[nn.Module] = set(modules)
        self._kept = Kept()
        self._start: Kept | None = None
        self._thread = threading.get_ident()
        self._plain = PlainTensors(double=double)
        self._private = PrivateBuffers(double=double)
        # Eval-mode BatchNorm keeps its running statistics for backward by reference: a later train-mode forward
        # would overwrite them, without an error, and the penalty's gradient would be wrong.
        self.buffers = {m: self._private.of(m) for m in modules if m._buffers}
        self.norms = Following(self.buffers, modules, sharded=self.is_sharded)

    @contextlib.contextmanager
    def applied(self) -> Iterator[bool]:
        """Put the frozen values in place, and the modules' own ones back; say whether there may be other modules."""
        outside = self._kept, self._start, self._recomputes
        self._kept, self._plain = self._notes(), PlainTensors(double=self._double)
        self._recomputes = in_backward()  # as a checkpoint does, in the loop's
        try:
            self._note_outside(self._kept)
            self._find_plain()
            for m in [*self.modules]:
                self._freeze(m)
            self._take_in_hidden()
            self._plain.put_copies()
            self.norms.refold_all()
            if self.stateful:
                self.note_start()
            yield self._kept.may_hold_more
        finally:
            try:
                self._kept.put_back()
            except BaseException:  # a KeyboardInterrupt fell into that
                self._kept.put_back()
                raise
            finally:
                self.norms.unhook()
                self._private.note_versions(self.buffers)
                self._kept, self._start, self._recomputes = outside

    def settle(self) -> None:
        """Close a pass in which statistics of norms followed a batch."""
        if self.norms.overwritten():
            self._kept.put_back_containers()  # the user's dict of parameters among them
            self.norms.recover()
        if self.stateful:
            self.note_start()

    def meeting(self) -> contextlib.AbstractContextManager[None]:
        """Take in modules that run, but were not found, for the length of the context: in eager forwards only."""
        if any(compiled_module(m) for m in self.modules if m is not self._core):  # torch warns of global hooks there
            return contextlib.nullcontext()
        return registered(register_module_forward_pre_hook, self._meet)

    def _meet(self, m: nn.Module, args: Any) -> None:
        if in_backward() and m in self._known and not self._recomputes:
            self.reruns = True
        if m not in self._known and threading.get_ident() == self._thread:
            known, was_inexact = len(self._plain.copies), self.found.inexact
            self._take_in(m)
            self._plain.put_copies(known)
            self.met_inexact = self.met_inexact or self.found.inexact > was_inexact

    def _take_in_hidden(self) -> None:
        """Take in modules in lists, dicts and objects of the frozen ones: they may be newer than the first look."""
        while self._kept.unregistered:
            m = self._kept.unregistered.pop()
            if m not in self._known:
                parts = submodules(m)
                # One that holds the model does not run in it, unless it is met.
                if self._core not in parts and not any(isinstance(part, REFUSED) for part in parts):
                    self._take_in(m)

    def _take_in(self, m: nn.Module) -> None:
        remember_unregistered(self._core, m)
        for part in submodules(m):
            if part not in self._known:
                self._known.add(part)
                self.modules.append(part)
                self.found = self.found.with_module(part)
                if part._buffers:
                    self.buffers[part] = self._private.of(part)
                self.norms.hold(part)
                self._freeze(part)

    def renew(self) -> None:
        """Let the next forward start from the frozen values, if forwards leave something for the next."""
        if self.stateful and self._start is not None:
            self._start.put_back()
            self.copy_tensors()

    def copy_tensors(self) -> None:
        """Put copies of the frozen buffers and plain tensors in place, which forwards may write."""
        self._plain.put_copies()
        copies: dict[int, Tensor] = {}
        for m in self.buffers:
            of_module = self.norms.frozen_buffers(m)
            m.__dict__["_buffers"] = {name: None if b is None else once(copies, b, b.clone) for name, b in of_module}

    def watch_traces(self) -> None:
        """Note what the next forward starts from, with copies that it may write."""
        self.copy_tensors()
        self.note_start()

    def private_tensors(self) -> list[Tensor]:
        """Return the clones that forwards may write."""
        buffers = [b for m in self.buffers for b in m.__dict__["_buffers"].values() if b is not None]
        return buffers + self._plain.copies

    def left_something(self) -> bool:
        """Say whether forwards since ``watch_traces`` have left something on modules, or where hooks collect."""
        written = any(t._version > 0 for t in self.private_tensors())
        return written or (self._start is not None and self._start.differs())

    def note_start(self) -> None:
        """Note what a forward is to start from, for ``renew`` and ``left_something``."""
        self._start = self._notes()
        self._note_outside(self._start)
        for m in self.modules:
            self._start.note(m)

    def _note_outside(self, kept: Kept) -> None:
        """Note what the model reaches beside its modules: as a function, by hooks, in what it is given."""
        kept.note_function(self._core)
        kept.note_global_hooks()
        for value in () if self._is_fsdp1 else self._others:
            kept.note_value(value)

    def _notes(self) -> Kept:
        return Kept(UNDER_FSDP1 if self._is_fsdp1 else None, sharded=self.is_sharded)

    def _freeze(self, m: nn.Module) -> None:
        self._kept.note(m)
        if not (self.is_sharded or self._recomputes):  # FSDP's belong to it; in a backward they are being added to
            self._kept.set_gradients_aside(m)
        switch_off(m, eager=self.eager)
        self._find_plain(m.__dict__)
        if m in self.buffers:
            self.norms.place(m)
        if self._double:
            widen(m.__dict__)

    def _find_plain(self, own: dict[str, Any] | None = None) -> None:
        """Take copies of plain tensors in the noted places; ``own`` are the attributes of a module."""
        while self._kept.places:
            where, held = self._kept.places.pop()
            self._plain.find(where, held, of_module=where is own)
