"""Which modules does a callable run? Those that can be reached from it are found; the rest are met in the forward."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn

DEPTH = 4  # objects on the way from a callable to a module: a trainer, its state, a list, an entry
ITEMS = 1000  # of a container: a module is not looked for among the rest
OPAQUE = (type, ModuleType, Tensor, BuiltinFunctionType, str, bytes, int, float, complex, bool, type(None))


def find_modules(f: Callable[..., Any]) -> list[nn.Module]:
    """Return the modules that a callable is or uses, wrappers included.

    Looks into a function's closure, default arguments and the globals that its code names, that of nested functions,
    comprehensions and lambdas too; a partial's arguments, the object of a method; and from there through containers
    and the attributes of objects, four steps deep. What a call reaches by other ways (``getattr`` by a computed name,
    C code) is not found: :func:`torchlipreg.model.fixed.fixed_function` freezes it when it runs.
    """
    found: list[nn.Module] = []
    seen: set[int] = set()
    level: list[Any] = [f]
    for _ in range(DEPTH + 1):
        below: list[Any] = []
        for value in level:
            if isinstance(value, OPAQUE) or id(value) in seen:
                continue
            seen.add(id(value))
            if isinstance(value, nn.Module):
                found.append(value)
            else:
                below += uses(value)
        level = below
    return found


def uses(value: Any) -> list[Any]:
    """Return what a callable or an object holds: one step of the search."""
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, FunctionType):
        return list(_used_by_function(value))
    if isinstance(value, dict):
        return [value[key] for key in _first(value)]
    if isinstance(value, (list, tuple, set, frozenset)):
        return _first(value)
    held = getattr(value, "__dict__", {})
    called = getattr(type(value), "__call__", None)  # noqa: B004
    return [*(held[key] for key in _first(held)), *([called] if isinstance(called, FunctionType) else [])]


def _used_by_function(f: FunctionType) -> Iterator[Any]:
    for cell in f.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # a name that the enclosing function has not bound yet
            continue
    yield from f.__defaults__ or ()
    yield from (f.__kwdefaults__ or {}).values()
    for name in _names(f.__code__):
        value = f.__globals__.get(name)
        # Helpers of the same file are followed, a library's functions are not: they would lead everywhere.
        if not isinstance(value, FunctionType) or value.__globals__ is f.__globals__:
            yield value


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _first(values: Any) -> list[Any]:
    return list(values) if len(values) <= ITEMS else [value for value, _ in zip(values, range(ITEMS), strict=False)]
