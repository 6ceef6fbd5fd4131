"""Kept: what a forward may leave behind on modules, noted before it and put back after it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

import torch
import torch.nn.modules.module as torch_hooks
from torch import Tensor, nn

from torchlipreg.model.parts.search import uses
from torchlipreg.model.traces.held import (
    CONTAINERS,
    HOLDING,
    ROOM,
    Attributes,
    attributes_of,
    is_array,
    is_shared,
    kind_of,
    plain_copy,
)
from torchlipreg.model.traces.records import Records

MANY = 10_000  # from there on a container, or an object's attributes, are known by their number alone
LONG = 1_000  # from there on what is inside of them is not noted
NESTED = 3  # containers and objects inside of one another that are noted, too
MOST = 2_000  # things of one attribute that are noted: a graph's table of neighbours is not what a forward writes
FEW = 100  # things in a list, a dict or an object among which plain tensors are looked for
OWN = list(nn.Module().__dict__)  # which nearly all modules have first
INERT = (Tensor, type, torch.Generator, ModuleType, BuiltinFunctionType)  # in which no module can be
SIMPLE = frozenset((int, float, bool, str, bytes, type(None), torch.dtype, torch.device))  # cannot be written
PRIVATE = ("torch.", "accelerate.", "deepspeed.", "torchlipreg.")  # whose hooks keep state of their own
GLOBAL_HOOKS = tuple(
    getattr(torch_hooks, f"_global_{kind}_hooks") for kind in ("forward", "forward_pre", "backward", "backward_pre")
)


class Kept(Records):
    """Notes of what there is on some modules.

    Put back are a module's attributes, parameters and submodules by their identity; what the lists, dicts, sets and
    objects among the attributes hold, and those inside of these, with the values of small numpy arrays; and what the
    module's hooks collect in those that they can reach. Not put back: the values of a tensor that is written in place
    (buffers and plain tensors are cloned for that, see :class:`torchlipreg.model.frozen.FrozenState`), and what a
    forward changes elsewhere, as in a global.

    Attributes:
        places: Attributes, small lists and dicts in which plain tensors may be, each with what it holds.
        unregistered: Modules that were found in attributes, containers and objects.
        may_hold_more: There is something in which modules may be that are not found: closures, partials, deep nests.
    """

    def __init__(self, only: frozenset[str] | None = None, *, sharded: bool = False) -> None:
        """Begin without notes.

        Args:
            only: The attributes to put back, where others are changed by those who have the right to (FSDP1).
            sharded: Leave parameters, submodules and buffers to FSDP.
        """
        super().__init__(only)
        self._sharded = sharded
        self._noted: set[int] = set()  # identities of these
        self._room = ROOM
        self._count = 0  # of things in the value that is being noted
        self.places: list[tuple[Any, list[tuple[Any, Any]]]] = []
        self.unregistered: list[nn.Module] = []
        self.may_hold_more = False

    def note(self, m: nn.Module) -> None:
        """Note what there is on a module."""
        values = m.__dict__
        if self._only is None:
            self.of_modules.append((values, values.copy()))
        else:
            self.of_modules.append((values, {name: values[name] for name in self._only if name in values}))
        names = [*values]
        names = names[len(OWN) :] if names[: len(OWN)] == OWN else [name for name in names if name not in OWN]
        held = _of_interest([values[name] for name in names])
        if Tensor in map(type, held):
            self.places.append((values, [(name, values[name]) for name in names]))
        if self._only is not None:
            return
        registries = () if self._sharded else (values["_parameters"], values["_modules"], values["_buffers"])
        for registered in registries:
            if registered:
                self.registries.append((registered, registered.copy()))
            else:
                self.empty.append(registered)
        for value in held:
            self.note_value(value)
        if m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks:
            self._note_hooks((m._forward_hooks, m._forward_pre_hooks, m._backward_hooks, m._backward_pre_hooks))

    def note_global_hooks(self) -> None:
        """Note what torch's global hooks of all modules can reach."""
        if any(GLOBAL_HOOKS):
            self._note_hooks(GLOBAL_HOOKS)

    def _note_hooks(self, of_kinds: Iterable[dict[int, Callable[..., Any]]]) -> None:
        for hooks in of_kinds:
            for hook in hooks.values():
                self.note_function(hook)

    def note_value(self, value: Any, depth: int = NESTED) -> None:
        """Note a container or an object, and what is inside of it."""
        kind = type(value)
        if id(value) in self._noted:
            return
        if issubclass(kind, nn.Module):
            self.unregistered.append(value)
            return
        if depth == NESTED:
            self._count = 0
        elif self._count > MOST:
            self.may_hold_more = True
            return
        attributes = [] if kind in HOLDING else attributes_of(value)
        if issubclass(kind, HOLDING):
            self._noted.add(id(value))
            self._note_container(value, depth)
        elif is_array(value):
            self._note_array(value)
        elif not attributes and not issubclass(kind, INERT) and not (kind is FunctionType and _is_open(value)):
            self.may_hold_more = True
        if attributes:
            self._noted.add(id(value))
            self._note_object(attributes, depth)

    def _note_array(self, value: Any) -> None:
        if value.size <= self._room:
            self._room -= value.size
            self.arrays.append((value, value.copy()))

    def _note_object(self, parts: list[Attributes], depth: int) -> None:
        if any(len(part) < MANY and is_shared(list(part.values())) for part in parts):  # another thread may write there
            self.may_hold_more = True
            self.unregistered += [held for part in parts for held in part.values() if issubclass(type(held), nn.Module)]
            return
        for part in parts:
            self._note_attributes(part, depth)

    def _note_container(self, value: Any, depth: int) -> None:
        kind = kind_of(value)
        if (length := kind.__len__(value)) > MANY and kind is not tuple:
            self.containers.append((value, length))
            self.may_hold_more = True
            return
        inside = plain_copy(value)  # of which another thread does not take away while we walk
        if kind is not tuple:
            self.containers.append((value, inside))
        self._note_inside(value, inside, depth)

    def _note_attributes(self, attributes: Attributes, depth: int) -> None:
        if len(attributes) > MANY:
            self.containers.append((attributes, len(attributes)))
            return
        before = dict(attributes)
        self.of_objects.append((attributes, before))
        self._note_inside(attributes, before, depth)

    def _note_inside(self, where: Any, inside: Any, depth: int) -> None:
        """Note what things are in a container, or in attributes, of which a copy is at hand."""
        self._count += len(inside)
        if len(inside) > LONG:
            self.may_hold_more = True
            return
        held = _of_interest(inside.values() if isinstance(inside, dict) else inside)
        if len(inside) <= FEW and not isinstance(inside, (tuple, set, deque)) and Tensor in map(type, held):
            self.places.append((where, list(inside.items() if isinstance(inside, dict) else enumerate(inside))))
        if not depth:
            self.may_hold_more = self.may_hold_more or bool(held)
            return
        for value in held if type(where) is not dict else [*held, *_of_interest(inside)]:
            self.note_value(value, depth - 1)

    def note_function(self, hook: Callable[..., Any]) -> None:
        """Note what a hook or a model that is a plain function, method or partial, can reach in two steps."""
        if (
            self._only is not None
            or isinstance(hook, nn.Module)
            or str(getattr(hook, "__module__", "")).startswith(PRIVATE)
        ):
            return
        for value in [hook, *uses(hook)]:
            if isinstance(value, FunctionType):
                self._note_function(value)
            elif not issubclass(type(value), nn.Module):
                self.note_value(value)

    def _note_function(self, function: FunctionType) -> None:
        for cell in function.__closure__ or ():
            try:
                self.cells.append((cell, cell.cell_contents))
            except ValueError:  # not bound yet
                continue
        for value in uses(function):
            if issubclass(type(value), CONTAINERS):
                self.note_value(value)


def _is_open(function: FunctionType) -> bool:
    """Say whether a function holds nothing but its globals."""
    return function.__closure__ is None and function.__defaults__ is None and function.__kwdefaults__ is None


def _of_interest(values: Iterable[Any]) -> list[Any]:
    """Leave out what cannot be written: numbers, and tuples of numbers alone, as most are."""
    try:
        held = [v for v in values if type(v) not in SIMPLE]
        return [v for v in held if type(v) is not tuple or not SIMPLE.issuperset(map(type, v))]
    except TypeError:  # a class that cannot be hashed
        return list(values)
