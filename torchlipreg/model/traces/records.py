"""Records: what attributes, containers, arrays and closures held, compared with what they hold, and put back."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from torchlipreg.model.traces.held import Attributes, refill, restore, same, unchanged


class Records:
    """What was noted before a forward.

    Attributes:
        of_modules: Attributes of modules, and what they were.
        of_objects: Those of objects.
        registries: A module's dicts of parameters, submodules and buffers, and what they held.
        empty: Those that held nothing.
        containers: Lists, dicts, sets and deques, and what they held, or how many.
        arrays: numpy's, and copies of them.
        cells: Of closures, and what they held.
        gradients: Parameters, and their ``.grad``.
    """

    def __init__(self, only: frozenset[str] | None = None) -> None:
        """Begin without records.

        Args:
            only: The attributes of modules to put back; None for all.
        """
        self._only = only
        self.of_modules: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self.of_objects: list[tuple[Attributes, dict[str, Any]]] = []
        self.registries: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self.empty: list[dict[str, Any]] = []
        self.containers: list[tuple[Any, Any]] = []
        self.arrays: list[tuple[Any, Any]] = []
        self.cells: list[tuple[Any, Any]] = []
        self.gradients: list[tuple[Tensor, Tensor | None]] = []

    def set_gradients_aside(self, m: nn.Module) -> None:
        """Take the ``.grad`` of a module's own parameters off until ``put_back``.

        The backward of a reversible block calls ``backward()`` of its own, and so adds to it in an ``autograd.grad``
        that asked for no such thing.
        """
        for w in m._parameters.values():
            if w is not None and w.is_leaf:  # in a functional_call it need not be a parameter
                own = w.grad
                if own is None or _fits(own, w):
                    self.gradients.append((w, own))
                    w.grad = None

    def differs(self) -> bool:
        """Say whether anything is not as it was noted."""
        return (
            any(not same(values, before) for values, before in [*self.of_modules, *self.of_objects, *self.registries])
            or any(_content(cell) is not before for cell, before in self.cells)
            or any(self.empty)
            or any(not unchanged(value, before) for value, before in self.containers)
            or any(value.tobytes() != before.tobytes() for value, before in self.arrays)
        )

    def put_back(self) -> None:
        """Put everything back; may be called again after it was interrupted."""
        for w, own in reversed(self.gradients):  # a tied one comes twice
            if w.grad is not own:
                w.grad = own
        for values, before in self.of_modules:
            restore(values, before, self._only)
        for attributes, before in self.of_objects:
            if not same(attributes, before):
                restore(attributes, before)
        for cell, before in self.cells:
            cell.cell_contents = before
        self.put_back_containers()

    def put_back_containers(self) -> None:
        """Put back what lists, dicts, sets and arrays held, a module's parameters and submodules among them."""
        for registered, own in self.registries:
            restore(registered, own)
        for registered in self.empty:
            registered.clear()
        for value, before in self.containers:
            if not unchanged(value, before):
                refill(value, before)
        for value, before in self.arrays:
            if value.tobytes() != before.tobytes():
                value[...] = before


def _fits(gradient: Tensor, w: Tensor) -> bool:
    """Say whether a gradient can be assigned: one that was set by ``.data``, as in another precision, cannot."""
    return (gradient.dtype, gradient.device, gradient.shape) == (w.dtype, w.device, w.shape)


def _content(cell: Any) -> Any:
    """Return what a closure's cell holds; the cell itself where a forward has deleted that."""
    try:
        return cell.cell_contents
    except ValueError:
        return cell
