"""The size of the penalty's gradient beside the task's, exactly: for choosing a weight."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from torchlipreg.geometry.norms import scaled_norm
from torchlipreg.geometry.units import at_least_single


def gradient_ratio(loss: Tensor, penalty_value: Tensor, parameters: Iterable[Tensor]) -> float:
    """Return ‖∇ penalty‖ / ‖∇ loss‖ over parameters, for choosing a weight: the ratio is proportional to it.

    Takes two backwards, reads their result, and leaves graphs and ``.grad`` as they are: not for every step. One is
    through the penalty, so that :attr:`LipschitzPenalty.was_added` is true from then on. A
    hundredth to one is where penalties worked, clean accuracy fell from a tenth on where a network could not fit its
    data; under 1e-4 they do nothing::

        out = model(x)
        loss, value = criterion(out, y), penalty(model, x, out)
        print(gradient_ratio(loss, value, model.parameters()))
        (loss + value).backward()

    Args:
        loss: The task's, 0-dim, with its graph.
        penalty_value: What the penalty returned, 0-dim, with its graph; one without (weight 0) has no gradient. With
            ``interval=k`` it is k times a step's mean, where ``penalty.share`` is of the mean, and 0 in between.
        parameters: Those to compare at, each counted once; ones that need no gradient do not count.

    Returns:
        The ratio ≥ 0; infinity where the loss has no gradient but the penalty has, and 0 where neither has.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If ``loss`` or ``penalty_value`` is not 0-dim, ``loss`` carries no gradient, or no parameter does.
    """
    for name, value in (("loss", loss), ("penalty_value", penalty_value)):
        if not isinstance(value, Tensor):
            raise TypeError(f"Expected argument `{name}` to be a tensor, but got {type(value).__name__}.")
        if value.dim() != 0:
            raise ValueError(f"Expected argument `{name}` to be 0-dim, but got shape {tuple(value.shape)}.")
    if not loss.requires_grad:
        raise ValueError("Expected argument `loss` to carry a gradient, but it has none. Compare before backward().")
    is_iterable = isinstance(parameters, Iterable) and not isinstance(parameters, (Tensor, torch.nn.Module))
    given = list(parameters) if is_iterable else []
    strange = [f"one with {type(p).__name__}" for p in given if not isinstance(p, Tensor)]
    if not is_iterable or strange:
        raise TypeError(
            "Expected argument `parameters` to be an iterable of tensors, such as model.parameters(), but got "
            f"{strange[0] if strange else type(parameters).__name__}."
        )
    trained = [*dict.fromkeys(p for p in given if p.requires_grad)]  # each once: tensors are keys by identity
    if not trained:
        raise ValueError("Expected argument `parameters` to hold a tensor that requires a gradient, but got none.")
    of_penalty, of_loss = (_gradient_size(value, trained) for value in (penalty_value, loss))
    if of_loss == 0:
        return math.inf if of_penalty > 0 else 0.0
    return of_penalty / of_loss


def _gradient_size(value: Tensor, parameters: list[Tensor]) -> float:
    if not value.requires_grad:
        return 0.0
    try:
        gradients = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        if "donated buffer" not in str(error):
            raise
        raise RuntimeError(
            "A compiled model frees what its backward needs, so that two cannot be taken. Compare the gradients with "
            "the module that was compiled, or once before it is."
        ) from error
    given = (g if g is None or g.layout == torch.strided else g.to_dense() for g in gradients)
    known = [torch.view_as_real(g) if g.is_complex() else g for g in given if g is not None and g.numel()]
    return math.hypot(*(float(scaled_norm(at_least_single(g).reshape(1, -1), 2)) for g in known))
