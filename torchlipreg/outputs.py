"""From a model's return value to the tensor that is penalised."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def default_output(y: Any) -> Any:
    """Return the tensor to penalise: a tensor itself, ``.logits``, ``["logits"]``, or else the first element."""
    if isinstance(y, Tensor):
        return y
    if getattr(y, "logits", None) is not None:
        return y.logits
    if isinstance(y, Mapping) and y:
        return y["logits"] if "logits" in y else next(iter(y.values()))
    if isinstance(y, (tuple, list)) and y:
        return y[0]
    return y


def root_probabilities(y: Any, dim: int = -1) -> Tensor:
    """Return the square roots of a classifier's probabilities, √softmax: ``output=root_probabilities`` penalises them.

    Their ℓ2 distance is √2 times Hellinger's, at most √2. It ignores what changes no prediction: a shift of all logits,
    and how far ahead of the others a sure winner is. Quotients are smaller than those of logits, and want a larger
    weight: for MNIST .02 instead of .001 where it is constant, and .4 at the start where it falls from epoch to epoch.

    Args:
        y: What the model returns: logits, or something that holds them as :func:`default_output` finds them.
        dim: The axis of the classes.

    Returns:
        Square roots of probabilities, the shape of the logits, at least float32.

    Raises:
        TypeError: If the model returns no floating tensor there.

    References:
        Not in the report. M. S. Nikulin, *Hellinger distance*, Encyclopedia of Mathematics.
    """
    logits = default_output(y)
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        kind = logits.dtype if isinstance(logits, Tensor) else type(logits).__name__
        raise TypeError(f"Expected the model to return logits, a floating tensor, but got {kind}: select them first.")
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    # Not softmax().sqrt(), whose gradient is NaN where a probability vanishes.
    return torch.exp(logits.log_softmax(dim) / 2)
