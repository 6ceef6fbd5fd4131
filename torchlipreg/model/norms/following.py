"""Following: the norms of a model in train mode, and how their frozen statistics follow those of a batch."""

from __future__ import annotations

import operator
from collections.abc import ItemsView, Iterable, Iterator
from typing import Any, cast

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from torchlipreg.model.internals.graph import in_transform
from torchlipreg.model.norms.batchnorm import (
    can_follow,
    channel_moments,
    depends_on_batch,
    fold,
    tracks_batches,
)

Buffers = dict[str, Tensor | None]
Moments = tuple[Tensor, Tensor]


class Following:
    """Norms in train mode: those whose statistics follow a batch, and those that give reason for caution.

    Attributes:
        norms: Those that can follow.
        repeated: One of them was called twice: only what comes after the last call is the function that stays.
        depends_on_batch: There is a BatchNorm without running statistics.
    """

    def __init__(self, buffers: dict[nn.Module, Buffers], modules: list[nn.Module], *, sharded: bool) -> None:
        """Sort the norms.

        Args:
            buffers: Frozen buffers of each module that has some, which grows with modules that are met late.
            modules: All modules.
            sharded: FSDP shards the model, and puts parameters in place itself.
        """
        self._buffers = buffers
        tracking = [m for m in buffers if tracks_batches(m)]
        self._under_fsdp = bool(tracking) and sharded
        self.norms = [] if sharded else [m for m in tracking if can_follow(m)]
        self._held = {type(m).__name__ for m in tracking if m not in self.norms and not sharded}
        self.depends_on_batch = any(depends_on_batch(m) for m in modules)
        self.repeated = False
        self._folded: dict[nn.Module, Folded] = {}
        self._refolded: dict[nn.Module, Moments] = {}
        self._handles: list[RemovableHandle] = []

    def hold(self, m: nn.Module) -> None:
        """Hold a module's statistics constant, if it tracks those of batches."""
        if tracks_batches(m):
            self._held.add(type(m).__name__)

    def statistics(self) -> Iterator[tuple[nn.Module, Tensor]]:
        """Return the norms that can follow, with each buffer: the frozen one, and what stands for it now."""
        for m in self.norms:
            for b in (*self._buffers[m].values(), *m._buffers.values()):
                if b is not None:
                    yield m, b

    def hold_those_read(self, norms: Iterable[nn.Module]) -> None:
        """Note that norms, whose statistics were read, are held constant, unless they were called and so followed."""
        self._held |= {type(m).__name__ for m in norms if m not in self._folded and m not in self._refolded}

    def follow(self, m: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Serve as a forward pre-hook of BatchNorm: from now on its statistics follow those of this input."""
        if in_transform():  # statistics of each model of an ensemble, or of each row, cannot leave it
            self._held.add(type(m).__name__)
            return
        moments = channel_moments(args[0] if args else kwargs["input"])
        own = self._folded[m].own if m in self._folded else m._parameters
        self.repeated = self.repeated or m in self._folded
        self._folded[m] = Folded(own, moments, *fold(cast(Any, m).eps, moments, own, self._buffers[m]))
        self.place(m)

    def place(self, m: nn.Module) -> None:
        """Put frozen buffers in place on a module, and what is folded."""
        if m in self._folded:
            m.__dict__["_parameters"] = self._folded[m].parameters
        m.__dict__["_buffers"] = dict(self.frozen_buffers(m))

    def frozen_buffers(self, m: nn.Module) -> ItemsView[str, Tensor | None]:
        """Return the names and the frozen values of a module's buffers."""
        return (self._folded[m].buffers if m in self._folded else self._buffers[m]).items()

    def overwritten(self) -> list[nn.Module]:
        """Return the norms whose folded values are no longer in place.

        ``torch.func.functional_call`` puts back, on leaving, what it has found on a module.
        """
        return [m for m, folded in self._folded.items() if not folded.is_in(m)]

    def recover(self) -> None:
        """Give norms that were overwritten their own parameters back, and fold anew around each of their forwards."""
        for m in self.overwritten():
            folded = self._folded.pop(m)
            m.__dict__["_parameters"] = folded.own
            self.place(m)
            self._refolded[m] = folded.moments
            self._refold(m)

    def refold_all(self) -> None:
        """Hook the norms that are folded around each forward."""
        for m in self._refolded:
            self._refold(m)

    def _refold(self, m: nn.Module) -> None:
        aside: list[tuple[Any, Any]] = []

        def before(m: Any, args: Any) -> None:
            aside.append((m._parameters, m._buffers))
            values = m.__dict__
            values["_parameters"], values["_buffers"] = fold(m.eps, self._refolded[m], m._parameters, m._buffers)

        def after(m: Any, args: Any, output: Any) -> None:
            m.__dict__["_parameters"], m.__dict__["_buffers"] = aside.pop()

        self._handles += [m.register_forward_pre_hook(before), m.register_forward_hook(after, always_call=True)]

    def unhook(self) -> None:
        """Remove the hooks."""
        while self._handles:
            self._handles.pop().remove()

    def caution(self) -> str | None:
        """Return what the user should know about norms in train mode, if anything."""
        if not (self._under_fsdp or self._held):
            return None
        which = "BatchNorm in train mode under FSDP" if self._under_fsdp else f"{_names(self._held)} in train mode"
        return (
            f"{which}: its statistics are held constant, and the penalty may drive activations away from them. "
            "Use DDP and torch's own BatchNorm, called as a module and not in a torch.func transform, another norm, or "
            "this one in eval mode."
        )


class Folded:
    """Parameters and buffers of a BatchNorm whose statistics follow a batch, as they were put in place."""

    def __init__(
        self,
        own: dict[str, Any],
        moments: Moments,
        parameters: dict[str, Any],
        buffers: Buffers,
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


def _names(names: set[str]) -> str:
    return ", ".join(sorted(names))
