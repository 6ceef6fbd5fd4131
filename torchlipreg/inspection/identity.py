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

    A model that is cast to another precision is another one, and so is one of which a module is exchanged.
    """
    function = model
    while isinstance(function, (functools.partial, MethodType)):
        function = function.func if isinstance(function, functools.partial) else function.__func__
    layers = [type(layer) for layer in function] if type(function) is nn.Sequential else []
    code, parts = function.__code__ if isinstance(function, FunctionType) else None, parts_of(model)
    return code, parameter_dtype(m for m in parts if isinstance(m, nn.Module)), *layers, *map(id, parts)


def parts_of(model: Any) -> list[Any]:
    """Return the modules that a callable computes with, those below them included; of an object without any itself."""
    model = unwrap(model)
    parts = [m for root in _roots(model) for m in submodules(root)]
    if parts or isinstance(model, (FunctionType, functools.partial)):
        return parts
    root = model.__self__ if isinstance(model, MethodType) else model
    return [root] if hasattr(type(root), "__weakref__") else []


def _roots(model: Any) -> list[nn.Module]:
    if not isinstance(model, nn.Module):
        return find_modules(model)
    if type(model) is nn.Sequential:  # often made anew around the same layers, with an activation made anew
        return [root for child in model if has_parameters(child) for root in _roots(child)] or [model]
    return [model]
