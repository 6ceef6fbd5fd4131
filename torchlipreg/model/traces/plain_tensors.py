"""PlainTensors: tensors that are neither parameters nor buffers, and the copies of them that forwards may write."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor

from torchlipreg.model.traces.buffers import LARGE, widened
from torchlipreg.model.traces.held import ROOM, put

LEAST = ROOM // 500  # as which a smaller tensor counts


class PlainTensors:
    """The plain tensors in some attributes, lists and dicts.

    Attributes:
        copies: What was put there in their place.
    """

    def __init__(self, *, double: bool) -> None:
        """Begin without any.

        Args:
            double: Copy to float64.
        """
        self._double = double
        self._found: list[tuple[Any, Any, Tensor]] = []
        self._room = ROOM
        self.copies: list[Tensor] = []

    def find(self, where: Any, held: list[tuple[Any, Any]], *, of_module: bool) -> None:
        """Note the plain tensors among what is held somewhere by name or number.

        Large ones are left out, and those in containers and objects once the room for copies is spent.

        Args:
            where: Attributes, a list or a dict.
            held: What it holds.
            of_module: These are the attributes of a module.
        """
        for name, value in held:
            if type(value) is Tensor and not value.requires_grad and value.numel() < LARGE:
                if not of_module:
                    self._room -= max(value.numel(), LEAST)
                if of_module or self._room >= 0:
                    self._found.append((where, name, value))

    def put_copies(self, first: int = 0) -> None:
        """Put copies in the place of all, or of those from the given one on."""
        found = self._found[first:]
        self.copies[first:] = copies_of([value for _, _, value in found], double=self._double) if found else []
        for (where, name, _), copy in zip(found, self.copies[first:], strict=True):
            put(where, name, copy)


def copies_of(tensors: list[Tensor], *, double: bool) -> list[Tensor]:
    """Return copies, of float64 if so asked; of tensors that share memory, as views do, copies that share it."""
    memories = [_memory(t) for t in tensors]
    count = Counter({id(t): memory for t, memory in zip(tensors, memories, strict=True)}.values())
    shared: dict[Any, Tensor] = {}
    copies: dict[int, Tensor] = {}  # one of a tensor that has several names
    for t, memory in zip(tensors, memories, strict=True):
        if id(t) in copies:
            continue
        if memory is None or count[memory] == 1:
            copies[id(t)] = _copy(t, double=double)
            continue
        if memory not in shared:
            shared[memory] = _copy(_all_of_memory(t), double=double)
        copies[id(t)] = shared[memory].as_strided(t.size(), t.stride(), t.storage_offset())
    return [copies[id(t)] for t in tensors]


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
