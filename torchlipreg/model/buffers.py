"""PrivateBuffers: clones of the modules' buffers, which forwards of a penalty may read and write."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

LARGE = 1 << 18  # numbers in a buffer, from which on a clone in each call would be felt
FIRST, WRITTEN = -2, -1
# Of large buffers: the version that was there at the last call, or that somebody writes them.
_VERSIONS: WeakKeyDictionary[nn.Module, dict[str, int]] = WeakKeyDictionary()


class PrivateBuffers:
    """One clone of each buffer, which several modules may have; of large ones only where somebody writes them."""

    def __init__(self, *, double: bool) -> None:
        """Begin without clones.

        Args:
            double: Clone to float64.
        """
        self._double = double
        self._clones: dict[int, Tensor] = {}
        self._large: list[tuple[nn.Module, str]] = []

    def of(self, m: nn.Module) -> dict[str, Tensor | None]:
        """Return the clones of a module's buffers."""
        return {
            name: None if b is None else once(self._clones, b, partial(self._private, m, name, b))
            for name, b in m._buffers.items()
        }

    def note_versions(self, buffers: dict[nn.Module, dict[str, Tensor | None]]) -> None:
        """Note whether large buffers are written, from outside or in the forwards that have been.

        Args:
            buffers: What ``of`` has returned, module by module.
        """
        for m, name in self._large:
            b, private, versions = m._buffers.get(name), buffers[m].get(name), _VERSIONS[m]
            if b is None or private is None or versions[name] == WRITTEN:
                continue
            written = private._version > 0 if private is not b else b._version != versions[name]
            versions[name] = WRITTEN if written else b._version

    def _private(self, m: nn.Module, name: str, b: Tensor) -> Tensor:
        b = self._clone_if_written(m, name, b)
        return widened(b) if self._double else b

    def _clone_if_written(self, m: nn.Module, name: str, b: Tensor) -> Tensor:
        if name == "observer_enabled":  # of fake quantisation, which would fit its range to each batch in eval mode too
            return b.detach().new_zeros(b.shape)
        if b.numel() < LARGE or b.is_inference():
            return b.detach().clone()
        self._large.append((m, name))
        versions = _VERSIONS.setdefault(m, {})
        before = versions.setdefault(name, b._version if name in versions else FIRST)
        if before not in (FIRST, b._version):
            versions[name] = WRITTEN
        return b if versions[name] == b._version else b.detach().clone()


def once(made: dict[int, Tensor], of: Tensor, make: Callable[[], Tensor]) -> Tensor:
    """Return what was made of a tensor before, or make it."""
    if (known := made.get(id(of))) is None:
        known = made[id(of)] = make()
    return known


def copies_of(tensors: list[Tensor], *, double: bool) -> list[Tensor]:
    """Return copies, of float64 if so asked; of tensors that share memory, as views do, copies that share it."""
    memories = [_memory(t) for t in tensors]
    count = Counter(memories)
    shared: dict[Any, Tensor] = {}
    copies = []
    for t, memory in zip(tensors, memories, strict=True):
        if memory is None or count[memory] == 1:
            copies.append(_copy(t, double=double))
            continue
        if memory not in shared:
            shared[memory] = _copy(_all_of_memory(t), double=double)
        copies.append(shared[memory].as_strided(t.size(), t.stride(), t.storage_offset()))
    return copies


def _copy(t: Tensor, *, double: bool) -> Any:
    return widened(t.clone()) if double else t.clone()


def _memory(t: Tensor) -> Any:
    """Return what is the same for tensors that share memory; None where that is large, or is not read as it lies."""
    if t.layout is not torch.strided or t.is_quantized or t.is_conj() or t.is_neg():
        return None
    memory = t.untyped_storage()
    return (memory._cdata, t.dtype) if memory.nbytes() < LARGE * t.element_size() else None


def _all_of_memory(t: Tensor) -> Tensor:
    memory = t.untyped_storage()
    flat = torch.empty(0, dtype=t.dtype, device=t.device)
    return flat.set_(memory, 0, (memory.nbytes() // t.element_size(),), (1,))


def widened(value: Tensor | None) -> Any:
    """Return a float64 copy of a floating tensor without a graph, anything else as it is."""
    return value if value is None or not value.is_floating_point() else value.detach().double()
