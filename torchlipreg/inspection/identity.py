"""Which model is it? Known again in each call, be it a lambda that is made anew around the same modules."""

from __future__ import annotations

import functools
from types import FunctionType, MethodType
from typing import Any

from torch import nn

from torchlipreg.model.parts.modules import has_parameters, parameter_dtype, submodules, unwrap
from torchlipreg.model.parts.search import find_modules


def identity(model: Any) -> Any:
    """Return what is the same in each call with a model: a lambda is often made anew, its code and modules are not.

    A model that is cast to another precision is another one.
    """
    function = model
    while isinstance(function, (functools.partial, MethodType)):
        function = function.func if isinstance(function, functools.partial) else function.__func__
    layers = [type(layer) for layer in function] if type(function) is nn.Sequential else []
    code, roots = function.__code__ if isinstance(function, FunctionType) else None, roots_of(model)
    dtypes = (parameter_dtype(submodules(root)) for root in roots if isinstance(root, nn.Module))
    return code, next(filter(None, dtypes), None), *layers, *map(id, roots)


def roots_of(model: Any) -> list[Any]:
    """Return the objects that a callable computes with: a module, a method's object, or what a function uses."""
    model = unwrap(model)
    if isinstance(model, (FunctionType, functools.partial)):
        return find_modules(model)
    root = model.__self__ if isinstance(model, MethodType) else model
    if type(root) is nn.Sequential:  # often made anew around the same layers, with an activation made anew
        return [part for child in root if has_parameters(child) for part in roots_of(child)] or [root]
    return [root] if hasattr(type(root), "__weakref__") else []
