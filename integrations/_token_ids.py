"""Token ids: the model as a function of what it looks up for them."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from torchlipreg.integrations._calls import Call, Lookup
from torchlipreg.model.internals.hooks import registered

IDS = "input_ids"
EMBEDS = "inputs_embeds"
NO_HOOK = "make_inputs_require_grads"  # transformers', which torch.func cannot take


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
