"""Held: what lists, dicts, sets and objects hold, compared with what they held before, and put back."""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Iterator, MutableMapping
from types import MemberDescriptorType
from typing import Any

from torch import Tensor, nn

CONTAINERS = (list, dict, set, deque)
HOLDING = (*CONTAINERS, tuple)
ROOTS = (nn.Module, Tensor, type)
# Whose objects are not put back: what another thread may write, and what is no object of somebody's own.
ELSEWHERE = frozenset(
    "torch accelerate deepspeed torchlipreg builtins functools weakref enum "
    "threading logging queue multiprocessing concurrent asyncio contextvars".split()
)


def attributes_of(value: Any) -> MutableMapping[str, Any] | None:
    """Return the attributes of an object of somebody's own class, which a forward may set; None for another value."""
    kind = type(value)
    if str(kind.__module__).partition(".")[0] in ELSEWHERE or issubclass(kind, ROOTS):
        return None
    held = getattr(value, "__dict__", None)
    if type(held) is dict:
        return held
    return Slots(value) if held is None and any("__slots__" in vars(c) for c in kind.__mro__) else None


class Slots(MutableMapping[str, Any]):
    """The attributes of an object without ``__dict__``, as if it had one."""

    def __init__(self, value: Any) -> None:
        self._value = value
        kinds = [kind for kind in type(value).__mro__ if "__slots__" in vars(kind)]  # others compute theirs, or are C's
        members = (member for kind in kinds for member in vars(kind).items())
        self._names = [name for name, member in members if type(member) is MemberDescriptorType]

    def __getitem__(self, name: str) -> Any:
        try:
            return getattr(self._value, name)
        except AttributeError:
            raise KeyError(name) from None

    def __setitem__(self, name: str, value: Any) -> None:
        if self.get(name, self) is not value:  # it may be read-only
            object.__setattr__(self._value, name, value)

    def __delitem__(self, name: str) -> None:
        object.__delattr__(self._value, name)

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._names if hasattr(self._value, name))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def plain_copy(value: Any) -> Any:
    """Copy a container as the built-in kind that it is: a subclass may copy in its own way, or not at all."""
    kind: Any = next(kind for kind in HOLDING if isinstance(value, kind))
    return kind(value) if kind in (deque, tuple) else kind.copy(value)


def restore(values: MutableMapping[str, Any], before: dict[str, Any], only: frozenset[str] | None = None) -> None:
    """Put values back, and take away what was added, or what of ``only`` was."""
    values.update(before)  # never empty on the way: a thread or a signal may look
    if len(values) > len(before):
        added = values.keys() - before.keys()
        for name in added if only is None else added & only:
            del values[name]


def same(values: MutableMapping[str, Any], before: dict[str, Any]) -> bool:
    """Say whether attributes are the ones that they were."""
    return len(values) == len(before) and all(map(operator.is_, values.values(), before.values()))


def unchanged(value: Any, before: Any) -> bool:
    """Say whether a container holds what it held: a copy of it, or its length alone."""
    if isinstance(before, int):
        return len(value) == before
    if isinstance(value, dict):
        return same(value, before) and all(map(operator.is_, value, before))
    return len(value) == len(before) and all(map(operator.is_, value, before))


def refill(value: Any, before: Any) -> None:
    """Let a container hold again what it held."""
    if isinstance(before, int):
        if isinstance(value, list):
            del value[before:]
        elif isinstance(value, dict):
            for name in list(value)[before:]:
                del value[name]
    elif isinstance(value, list):
        value[:] = before
    else:
        value.clear()
        value.update(before) if not isinstance(value, deque) else value.extend(before)
