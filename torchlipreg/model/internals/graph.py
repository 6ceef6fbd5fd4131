"""Autograd: is a backward or a transform under way; which parameters a value depends on, and which come last."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves


def in_backward() -> bool:
    """Say whether autograd is in the middle of a backward, in this thread."""
    return torch._C._current_graph_task_id() >= 0


def in_transform() -> bool:
    """Say whether a transform of ``torch.func`` is under way."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def check_no_backward() -> None:
    """Raise RuntimeError in a backward, as of a checkpoint that recomputes, where pairs would move a second time."""
    if in_backward():
        raise RuntimeError(
            "A penalty cannot move its pairs in a backward, as in what torch.utils.checkpoint recomputes: they would "
            "move twice. Call it outside of the checkpoint, or with update=False; checkpoints inside of `model` are "
            "fine."
        )


def check_no_transform() -> None:
    """Raise RuntimeError inside of a transform of ``torch.func``, where an ascent by autograd cannot be."""
    if in_transform():
        raise RuntimeError(
            "A penalty cannot be called inside of a torch.func transform (grad, vmap, jvp): it differentiates by "
            "autograd. Call it outside, and take gradients by torch.autograd.grad(value, parameters), with "
            "create_graph=True if they are to be differentiated again. If the transform is another penalty's "
            "derivative, give that one a `radius` that is not in the limit 0."
        )


def leaves(values: Any) -> set[int]:
    """Return the ids of the leaf tensors in the graphs of a tensor, or of all in what a model returns."""
    stack, seen, found = [t.grad_fn for t in tree_leaves(values) if isinstance(t, Tensor)], set(), set()
    while stack:
        node = stack.pop()
        if node is not None and node not in seen:
            seen.add(node)
            stack.extend(following for following, _ in node.next_functions)
            if hasattr(node, "variable"):
                found.add(id(node.variable))
    return found


def nearest_weights(value: Tensor, count: int) -> list[Tensor]:
    """Return the parameters of two axes or more that are nearest to a value in its graph, at most ``count``."""
    found: list[Tensor] = []
    seen: set[Any] = set()
    level = [value.grad_fn]
    while level and len(found) < count:
        below: list[Any] = []
        for node in level:
            if node is not None and node not in seen:
                seen.add(node)
                below += [following for following, _ in node.next_functions]
                if hasattr(node, "variable") and node.variable.dim() > 1:
                    found.append(node.variable)
        level = below
    return found[:count]
