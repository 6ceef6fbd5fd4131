"""Held: what lists, dicts, sets and objects hold, compared with what they held before, and put back.

Values are known by ``type()``, not by ``isinstance()``, which believes what proxies and mocks say of themselves; and
are read and written by the methods of the built-in kind, as a subclass's own may refuse, or do more.
"""

from __future__ import annotations

import operator
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, MutableMapping
from types import MemberDescriptorType
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.optim import Optimizer

CONTAINERS = (list, dict, set, deque)
HOLDING = (*CONTAINERS, tuple)
KINDS = (list, OrderedDict, dict, set, deque, tuple)
ROOTS = (nn.Module, Tensor, type, Optimizer)
# Packages whose objects keep books of their own, or are not data of the user: never put back.
ELSEWHERE = frozenset(
    "torch accelerate deepspeed lightning lightning_fabric pytorch_lightning torchlipreg "
    "builtins functools weakref enum contextvars logging".split()
)
# Who makes threads and what they share: an object that is or holds one of these may be written by another thread.
THREADS = frozenset("_thread threading _queue queue multiprocessing concurrent asyncio".split())
ROOM = 1 << 20  # numbers that are copied of arrays, and of tensors in containers and objects
ARRAY = 1 << 16  # numbers, up to which an array is copied

Attributes = MutableMapping[str, Any]
_SLOTS: WeakKeyDictionary[type, list[tuple[int, str]] | None] = WeakKeyDictionary()
_OF_THREADS: WeakKeyDictionary[type, bool] = WeakKeyDictionary()


def attributes_of(value: Any) -> list[Attributes]:
    """Return the attributes of an object of somebody's own class, which a forward may set: its dict, its slots."""
    kind = type(value)
    if type(kind).__hash__ is None:  # a class that nothing can be known of
        return []
    slots = _SLOTS[kind] if kind in _SLOTS else _SLOTS.setdefault(kind, _slots_of(kind))
    if slots is None:
        return []
    found: list[Attributes] = [Slots(value, slots)] if slots else []
    try:
        held = object.__getattribute__(value, "__dict__")  # not by a __getattr__ of the class
    except Exception:  # it may be a property, which raises what it likes
        held = None
    return [*found, held] if type(held) is dict else found


def is_array(value: Any) -> bool:
    """Say whether a value is a small array of numpy's that may be written."""
    kind = type(value)
    is_one = kind.__name__ == "ndarray" and kind.__module__ == "numpy"
    return is_one and value.size <= ARRAY and value.flags.writeable and not value.dtype.hasobject


def is_shared(values: Iterable[Any]) -> bool:
    """Say whether locks, queues or threads are among what an object holds, or in lists of it."""
    return any(
        _is_of_threads(v) or (type(v) in (list, tuple) and any(_is_of_threads(part) for part in v[:100]))
        for v in values
    )


def _is_of_threads(value: Any) -> bool:
    kind = type(value)
    if kind.__module__ == "builtins" or type(kind).__hash__ is None:
        return False
    if kind not in _OF_THREADS:
        _OF_THREADS[kind] = any(_package(k) in THREADS for k in kind.__mro__)
    return _OF_THREADS[kind]


def _slots_of(kind: type) -> list[tuple[int, str]] | None:
    """Return where in its line of bases a class has which slots; None for one whose objects are not put back."""
    if _package(kind) in ELSEWHERE or issubclass(kind, ROOTS) or not THREADS.isdisjoint(map(_package, kind.__mro__)):
        return None
    slots: dict[str, int] = {}
    for i, base in enumerate(kind.__mro__):
        if "__slots__" in vars(base):  # others compute theirs, or are C's
            for name, member in vars(base).items():
                if type(member) is MemberDescriptorType:
                    slots.setdefault(name, i)
    return [(i, name) for name, i in slots.items()]


def _package(kind: type) -> str:
    return str(kind.__module__).partition(".")[0]


class Slots(Attributes):
    """The attributes that an object has in slots, as if they were in a dict."""

    def __init__(self, value: Any, slots: list[tuple[int, str]]) -> None:
        self._value = value
        bases = type(value).__mro__
        self._members = {name: vars(bases[i])[name] for i, name in slots}

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
    """Return the built-in kind of a container."""
    kind = type(value)
    return kind if kind in KINDS else next(base for base in KINDS if issubclass(kind, base))


def plain_copy(value: Any) -> Any:
    """Copy a container as the built-in kind that it is, in its order."""
    kind = kind_of(value)
    if issubclass(kind, dict):
        return dict(kind.items(value))
    if kind is tuple:
        return tuple.__getitem__(value, slice(None))
    return deque(deque.__iter__(value)) if kind is deque else kind.copy(value)


def put(where: Any, name: Any, value: Any) -> None:
    """Put a value into attributes, a list or a dict."""
    kind = kind_of(where) if issubclass(type(where), CONTAINERS) else type(where)
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
    kind = kind_of(value)
    if isinstance(before, int):
        return bool(kind.__len__(value) == before)
    if kind.__len__(value) != len(before):
        return False
    if kind is set:  # which may come in another order
        return bool(set.__eq__(value, before))
    if issubclass(kind, dict) and not all(map(operator.is_, kind.values(value), before.values())):
        return False
    return all(map(operator.is_, kind.__iter__(value), before))


def refill(value: Any, before: Any) -> None:
    """Let a container hold again what it held."""
    kind = kind_of(value)
    if isinstance(before, int):
        if kind is list:
            list.__delitem__(value, slice(before, None))
        elif issubclass(kind, dict):
            for name in list(kind.keys(value))[before:]:
                kind.__delitem__(value, name)
        elif kind is deque:
            while deque.__len__(value) > before:
                deque.pop(value)
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
