"""PrivateBuffers: clones of the modules' buffers, which forwards of a penalty may read and write."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

LARGE = 1 << 18  # numbers in a buffer, from which on a clone in each call takes noticeable time
FIRST, WRITTEN = -2, -1
# Of large buffers: the version at the last call, or WRITTEN where somebody writes them.
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
        if b.requires_grad:  # weights that another network has made, or that are trained where they are
            return b.clone()
        if b.numel() < LARGE or b.is_inference():
            return b.detach().clone()
        self._large.append((m, name))
        versions = _VERSIONS.setdefault(m, {})
        before = versions.setdefault(name, FIRST)
        if before not in (FIRST, b._version):
            versions[name] = WRITTEN
        return b if versions[name] == b._version else b.detach().clone()


def once(made: dict[int, Tensor], of: Tensor, make: Callable[[], Tensor]) -> Tensor:
    """Return what was made of a tensor before, or make it."""
    if (known := made.get(id(of))) is None:
        known = made[id(of)] = make()
    return known


def widened(value: Tensor | None) -> Any:
    """Return a copy in double precision of a floating or complex tensor without a graph, anything else as it is."""
    if value is not None and value.is_complex():
        return value.detach().to(torch.complex128)
    return value if value is None or not value.is_floating_point() else value.detach().double()


def widen(values: dict[str, Any]) -> None:
    """Put float64 copies in the place of a module's parameters and plain tensors."""
    values["_parameters"] = {name: widened(p) for name, p in values["_parameters"].items()}
    for name, value in values.items():
        if type(value) is Tensor:
            values[name] = widened(value)
    if "_flat_weights_names" in values:  # of torch's RNNs, which hold their parameters twice
        values["_flat_weights"] = [values["_parameters"].get(name) for name in values["_flat_weights_names"]]
