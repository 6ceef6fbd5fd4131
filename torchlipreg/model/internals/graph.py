"""Walks over the graph of autograd: which parameters a value depends on, and which of them come last."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def leaves(tensors: list[Tensor]) -> set[int]:
    """Return the ids of the leaf tensors in the graphs of some tensors."""
    stack, seen, found = [t.grad_fn for t in tensors], set(), set()
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
