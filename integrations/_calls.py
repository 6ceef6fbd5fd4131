"""Calls: what a model was called with in a step, what it looked up in its tables of embeddings, what it returned."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from torchlipreg.model.internals.hooks import registered

MOST = 4  # lookups of a call that are kept


class Lookup(NamedTuple):
    """What a table of embeddings was asked, and what it gave."""

    ids: Any
    found: Tensor


class Call:
    """A call of a model: by which names, what it has looked up in which tables, what it returned."""

    def __init__(self, kwargs: dict[str, Any], tables: list[nn.Module], returned: Any = None) -> None:
        self.kwargs, self.tables, self.lookups, self.returned = kwargs, tables, list[Lookup](), returned


@contextlib.contextmanager
def recorded(model: nn.Module, plain: Any) -> Iterator[list[Call]]:
    """Note the calls of a model with gradients.

    Args:
        model: As it is called.
        plain: The same without wrappers.

    Yields:
        The calls, in order.
    """
    calls: list[Call] = []
    tables = tables_of(plain)

    def begin(m: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            calls.append(Call(_by_name(plain, args, kwargs), tables))

    def end(m: nn.Module, args: Any, kwargs: dict[str, Any], returned: Any) -> None:
        if calls and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            calls[-1].returned = returned

    def note(table: nn.Module, args: Any, found: Any) -> None:
        if calls and isinstance(found, Tensor) and not torch.compiler.is_compiling():
            if len(calls[-1].lookups) < MOST:
                calls[-1].lookups.append(Lookup(args[0] if args else None, found.detach()))

    with contextlib.ExitStack() as stack:
        # First of all: what hooks of the user's make of the arguments, they make again in the penalty's forwards.
        stack.enter_context(registered(model.register_forward_pre_hook, begin, with_kwargs=True, prepend=True))
        stack.enter_context(registered(model.register_forward_hook, end, with_kwargs=True))
        for table in tables:  # before noise that other hooks add in training, as NEFTune's
            stack.enter_context(registered(table.register_forward_hook, note, prepend=True))
        yield calls


def tables_of(model: Any) -> list[nn.Module]:
    """Return the modules in which a model may look token ids up: its table, and those that share the weight of it."""
    try:
        table = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):  # of images, for one
        return []
    if not isinstance(table, nn.Module):
        return []
    weight, inside = getattr(table, "weight", None), set(table.modules())
    return [table, *(m for m in model.modules() if m not in inside and weight is not None and _holds(m, weight))]


def _holds(m: nn.Module, weight: Tensor) -> bool:
    return isinstance(m, nn.Embedding) and m._parameters.get("weight") is weight


def _by_name(plain: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call by name; none if they have no names."""
    if not args:
        return dict(kwargs)
    signature = inspect.signature(plain.forward)
    try:
        bound = dict(signature.bind_partial(*args, **kwargs).arguments)
    except TypeError:
        return {}
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL and name in bound:
            return {}
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            bound |= bound.pop(name, {})
    return bound
