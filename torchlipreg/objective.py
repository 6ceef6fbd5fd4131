"""What the ascent climbs and the penalty reduces: differences and quotients of a pair set, or their limit ε → 0."""

from __future__ import annotations

import torch
from torch import Tensor

from torchlipreg.frozen import Function
from torchlipreg.jacobian import directional_derivative
from torchlipreg.norms import per_row
from torchlipreg.pairs import PairSet
from torchlipreg.quotient import quotient


def pair_differences(
    f: Function, pairs: PairSet, fx: Tensor | None = None, counts: Tensor | None = None, *, limit: bool
) -> Tensor:
    """Return f(x′) − f(x) of each pair, with gradients to the pairs and to the parameters of f.

    Args:
        f: The model as a fixed function.
        pairs: Pairs, shape (N, *).
        fx: f(pairs.x) if it is known already, shape (N, *).
        counts: Which pairs count, shape (N,), bool; default all.
        limit: The limit ε → 0: J v with v = x′ − x.

    Returns:
        Differences, shape (N, *), zero and without gradient for pairs that do not count.

    Raises:
        ValueError: If the output does not depend on f's input or parameters in a differentiable way.
    """
    if limit:
        difference = directional_derivative(f, pairs.x, pairs.x_prime - pairs.x)
    elif fx is not None:
        difference = f(pairs.x_prime) - fx
    else:
        at_x, at_x_prime = f(torch.cat(pairs)).chunk(2)
        difference = at_x_prime - at_x
    if pairs.x_prime.requires_grad and not difference.requires_grad:
        raise ValueError(
            "Expected the model's output to carry a gradient, but it has none: look for detach(), no_grad() or "
            "inference tensors inside `model` or `output`."
        )
    return difference if counts is None else torch.where(per_row(counts, difference), difference, 0)


def pair_quotients(
    f: Function,
    pairs: PairSet,
    fx: Tensor | None = None,
    counts: Tensor | None = None,
    *,
    input_norm: float,
    output_norm: float,
    floor: float,
    limit: bool,
) -> Tensor:
    """Return the quotient of each pair, with gradients to the pairs and to the parameters of f.

    Args:
        f: The model as a fixed function.
        pairs: Pairs, shape (N, *).
        fx: f(pairs.x) if it is known already, shape (N, *).
        counts: Which pairs count, shape (N,), bool; default all. The others' quotients are zero.
        input_norm: 1, 2 or ``math.inf``.
        output_norm: 1, 2 or ``math.inf``.
        floor: Smallest distance that counts.
        limit: The limit ε → 0: ‖J v‖ / ‖v‖ with v = x′ − x.

    Returns:
        Quotients, shape (N,).
    """
    difference = pair_differences(f, pairs, fx, counts, limit=limit)
    distance = pairs.distance(input_norm)
    return quotient(difference, distance, torch.finfo(distance.dtype).tiny if limit else floor, output_norm)
