"""Token ids: the call of a model, recorded, and the model as a function of what it looks up for them."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from torchlipreg.model.internals.hooks import registered

IDS = "input_ids"
EMBEDS = "inputs_embeds"
MOST = 4  # lookups of a call that are kept
NO_HOOK = "make_inputs_require_grads"  # transformers', which torch.func cannot take


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


def of_ids(
    core: Callable[..., Any], plain: Any, ids: Tensor, call: Call, rest: dict[str, Any]
) -> tuple[str, Callable[..., Any], Tensor, dict[str, Any]]:
    """Return the arguments of a penalty's call that moves what a model looks up for token ids.

    Args:
        core: The model, which runs eagerly.
        plain: The same without wrappers.
        ids: Shape (N, *).
        call: With what it has looked up, if that is known.
        rest: What the model takes, the ids included.

    Returns:
        Name, function, embeddings as data, and the rest.

    Raises:
        ValueError: If the model has no table, or looks its ids up in an unknown way.
    """
    tables, lookups = call.tables, call.lookups
    if not tables:
        raise ValueError(
            "Expected argument `model` to have a method `get_input_embeddings` that returns a module, because token "
            f"ids cannot be moved, but {type(plain).__name__} lacks it. Add it as the models of transformers have it, "
            "or name another input by `penalty_input`."
        )
    learns = any(p.requires_grad for table in tables for p in table.parameters())
    for place, lookup in enumerate(lookups):
        if (found := _in_order(lookup, ids)) is not None:
            x, turned = found
            f = partial(call_with_embeddings, core, tables, place, turned)
            return EMBEDS, f, x.requires_grad_(learns), rest
    x = _embed(tables[0], ids)
    if not isinstance(x, Tensor):
        raise ValueError(
            "Expected argument `model` to have a table of embeddings that returns a tensor, because token ids cannot "
            f"be moved, but that of {type(plain).__name__} returns a {type(x).__name__}. Name another input by "
            "`penalty_input`."
        )
    x = x.detach().requires_grad_(learns)
    if not lookups:  # a compiled call
        return EMBEDS, partial(call_with_embeddings, core, tables, 0, False), x, rest
    if EMBEDS not in inspect.signature(type(plain).forward).parameters:
        raise ValueError(
            f"Expected argument `model` to look its token ids up as they are, but {type(plain).__name__} does so in an "
            f"unknown way. Give it a parameter `{EMBEDS}`, or name another input by `penalty_input`."
        )
    others = {name: value for name, value in rest.items() if name != IDS}
    return EMBEDS, partial(call_by_name, core, EMBEDS), x, others


def call_by_name(model: Callable[..., Any], name: str, x: Tensor, /, **kwargs: Any) -> Any:
    """Call a model with its input by name."""
    return model(**{name: x}, **kwargs)


def call_with_embeddings(
    model: Callable[..., Any], tables: list[nn.Module], place: int, turned: bool, x: Tensor, /, **kwargs: Any
) -> Any:
    """Call a model on token ids, of which it gets these embeddings.

    Args:
        model: In which one of the tables looks them up.
        tables: Those that may.
        place: Which of the lookups is that of the ids.
        turned: It has the batch on axis 1.
        x: The embeddings, shape (N, *, channels).
        **kwargs: What the model takes, the ids among them.

    Returns:
        What the model returns.

    Raises:
        ValueError: If it looks none up, or others.
    """
    met = 0

    def instead(table: nn.Module, args: Any, found: Any) -> Any:
        nonlocal met
        met += 1
        if met != place + 1:
            return found
        if not isinstance(found, Tensor) or found.numel() != x.numel():
            raise ValueError(
                f"Expected argument `model` to look up {tuple(x.shape)} for its token ids, but it looked up another "
                "shape. Name another input by `penalty_input`, or give the model `inputs_embeds`."
            )
        return x.transpose(0, 1) if turned else x.reshape(found.shape)

    with contextlib.ExitStack() as stack:
        for table in tables:
            stack.callback(table.__dict__.__setitem__, "_forward_hooks", table._forward_hooks)
            kept = {i: hook for i, hook in table._forward_hooks.items() if getattr(hook, "__name__", "") != NO_HOOK}
            table.__dict__["_forward_hooks"] = type(table._forward_hooks)(kept)
            stack.enter_context(registered(table.register_forward_hook, instead))
        returned = model(**kwargs)
    if met <= place:
        raise ValueError(
            "Expected argument `model` to look its token ids up by calling `get_input_embeddings()`, whose embeddings "
            "are moved, but it did not. Name another input by `penalty_input`, or give it `inputs_embeds`."
        )
    return returned


def _in_order(lookup: Lookup, ids: Tensor) -> tuple[Tensor, bool] | None:
    """Return embeddings in the order of the ids, shape (N, *, channels), and whether the lookup had them on axis 1.

    None if the lookup was of others.
    """
    asked, found = lookup
    if not isinstance(asked, Tensor) or found.shape[:-1] != asked.shape:
        return None
    if asked.numel() == ids.numel():
        if _is_same(asked, ids.reshape(asked.shape)):
            return found.reshape(*ids.shape, found.shape[-1]), False
        if ids.dim() == asked.dim() == 2 and asked.shape == ids.T.shape and _is_same(asked, ids.T):
            return found.transpose(0, 1).contiguous(), True
        return None
    longer = asked.dim() == ids.dim() == 2 and len(asked) == len(ids) and asked.shape[1] > ids.shape[1]
    return (found, False) if longer and torch.equal(asked[:, : ids.shape[1]], ids) else None  # padded to a window


def _is_same(asked: Tensor, ids: Tensor) -> bool:
    in_place = (asked.data_ptr(), asked.stride()) == (ids.data_ptr(), ids.stride())  # without waiting for the device
    return in_place or torch.equal(asked, ids)


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


def _embed(table: nn.Module, ids: Tensor) -> Any:
    """Return the embeddings of token ids, drawing no random number and running no hook."""
    # Whole tensors under FSDP2, whose shards the module's own forward could not use outside of the model's.
    whole = {name: p.full_tensor() for name, p in table.named_parameters() if hasattr(p, "full_tensor")}
    training, table.training = table.training, False
    try:
        with torch.no_grad():
            x = torch.func.functional_call(table, whole, (ids,)) if whole else table.forward(ids)
    finally:
        table.training = training
    return x


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
