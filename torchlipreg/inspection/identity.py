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
    (code, _), root = rough_identity(model)
    layers, parts = [type(layer) for layer in root] if type(root) is nn.Sequential else [], parts_of(model)
    return code, parameter_dtype(m for m in parts if isinstance(m, nn.Module)), *layers, *map(id, parts)


def rough_identity(model: Any) -> tuple[Any, Any]:
    """Return what stays where a model's parts are others in each call, and the object that has to be alive for it.

    As where the object of a method holds an average of the model that is copied anew, or a forward makes an activation.
    Two lambdas of the same code are the same.
    """
    while isinstance(model, functools.partial):
        model = model.func
    function, root = (model.__func__, model.__self__) if isinstance(model, MethodType) else (model, model)
    code = function.__code__ if isinstance(function, FunctionType) else None
    root = None if isinstance(root, FunctionType) else root
    return (code, None if root is None else id(root)), root


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
