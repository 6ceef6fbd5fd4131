"""Held: what lists, dicts, sets and objects hold, compared with what they held before, and put back."""

from __future__ import annotations

import functools
import operator
from collections import OrderedDict, deque
from collections.abc import Iterator, MutableMapping
from types import MemberDescriptorType
from typing import Any

from torch import Tensor, nn

CONTAINERS = (list, dict, set, deque)
HOLDING = (*CONTAINERS, tuple)
KINDS = (list, OrderedDict, dict, set, deque, tuple)
ROOTS = (nn.Module, Tensor, type)
LONG = 1000  # from there on a list or dict, or an object's attributes, are known by their number alone
# Whose objects are not put back: of libraries that keep books of their own, and what is no object of somebody's own.
ELSEWHERE = frozenset(
    "torch accelerate deepspeed lightning lightning_fabric pytorch_lightning torchlipreg "
    "builtins collections functools weakref enum contextvars".split()
)
# Who makes threads and what they share: an object that is or holds one of these may be written by another thread.
THREADS = frozenset("_thread threading _queue queue logging multiprocessing concurrent asyncio".split())

Attributes = MutableMapping[str, Any]


def attributes_of(value: Any) -> list[Attributes]:
    """Return the attributes of an object of somebody's own class, which a forward may set: its dict, its slots."""
    kind: Any = type(value)
    members = _members_of(kind)
    if members is None:
        return []
    found: list[Attributes] = [Slots(value, members)] if members else []
    try:
        held = object.__getattribute__(value, "__dict__")  # not by a __getattr__ of the class
    except AttributeError:
        held = None
    if type(held) is dict:
        found.append(held)
    for attributes in found:
        if len(attributes) <= LONG and any(map(_is_of_threads, map(type, list(attributes.values())))):
            return []
    return found


@functools.lru_cache(maxsize=1000)
def _members_of(kind: Any) -> dict[str, MemberDescriptorType] | None:
    """Return a class's slots by name; None for one whose objects are not put back."""
    if _package(kind) in ELSEWHERE or issubclass(kind, ROOTS) or _is_of_threads(kind):
        return None
    declaring = [vars(k) for k in kind.__mro__ if "__slots__" in vars(k)]  # others compute theirs, or are C's
    members: dict[str, MemberDescriptorType] = {}
    for name, member in (item for of_class in declaring for item in of_class.items()):
        if type(member) is MemberDescriptorType:
            members.setdefault(name, member)
    return members


@functools.lru_cache(maxsize=1000)
def _is_of_threads(kind: Any) -> bool:
    return any(_package(k) in THREADS for k in kind.__mro__)


def _package(kind: type) -> str:
    return str(kind.__module__).partition(".")[0]


class Slots(Attributes):
    """The attributes that an object has in slots, as if they were in a dict."""

    def __init__(self, value: Any, members: dict[str, MemberDescriptorType]) -> None:
        self._value, self._members = value, members

    def __getitem__(self, name: str) -> Any:
        try:
            return self._members[name].__get__(self._value)  # past what the class makes of getattr()
        except AttributeError:
            raise KeyError(name) from None

    def __setitem__(self, name: str, value: Any) -> None:
        self._members[name].__set__(self._value, value)

    def __delitem__(self, name: str) -> None:
        self._members[name].__delete__(self._value)

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._members if name in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def kind_of(value: Any) -> Any:
    """Return the built-in kind of a container, whose methods are used: a subclass's own may refuse, or do more."""
    kind = type(value)
    return kind if kind in KINDS else next(kind for kind in KINDS if isinstance(value, kind))


def plain_copy(value: Any) -> Any:
    """Copy a container as the built-in kind that it is, in its order."""
    kind = kind_of(value)
    if kind is OrderedDict:
        return dict(OrderedDict.items(value))
    return kind(value) if kind in (deque, tuple) else kind.copy(value)


def put(where: Any, name: Any, value: Any) -> None:
    """Put a value into attributes, a list or a dict."""
    kind = kind_of(where) if isinstance(where, CONTAINERS) else type(where)
    kind.__setitem__(where, name, value)


def restore(values: Attributes, before: dict[str, Any], only: frozenset[str] | None = None) -> None:
    """Put values back, and take away what was added, or what of ``only`` was."""
    values.update(before)  # never empty on the way: a thread or a signal may look
    if len(values) > len(before):
        added = values.keys() - before.keys()
        for name in added if only is None else added & only:
            del values[name]


def same(values: Attributes, before: dict[str, Any]) -> bool:
    """Say whether attributes are the ones that they were."""
    return len(values) == len(before) and all(map(operator.is_, values.values(), before.values()))


def unchanged(value: Any, before: Any) -> bool:
    """Say whether a container holds what it held: a copy of it, or its length alone."""
    if isinstance(before, int):
        return len(value) == before
    if len(value) != len(before):
        return False
    if isinstance(value, dict):
        kind = kind_of(value)
        if not all(map(operator.is_, kind.values(value), before.values())):
            return False
        return all(map(operator.is_, kind.keys(value), before))
    return all(map(operator.is_, value, before))


def refill(value: Any, before: Any) -> None:
    """Let a container hold again what it held."""
    kind = kind_of(value)
    if isinstance(before, int):
        if kind is list:
            list.__delitem__(value, slice(before, None))
        elif issubclass(kind, dict):
            for name in list(kind.keys(value))[before:]:
                kind.__delitem__(value, name)
    elif kind is list:
        list.__setitem__(value, slice(None), before)
    else:
        kind.clear(value)
        if kind is deque:
            deque.extend(value, before)
        elif kind is set:
            set.update(value, before)
        else:
            for name, held in before.items():
                kind.__setitem__(value, name, held)
