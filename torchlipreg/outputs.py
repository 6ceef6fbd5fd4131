"""From a model's return value to the tensor that is penalised, and to the data points that need it most."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchlipreg.checks import check_count
from torchlipreg.geometry.units import at_least_single
from torchlipreg.tensor_checks import check_output


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


class Positions(NamedTuple):
    """Outputs that count one by one: what :func:`per_position` returns.

    Attributes:
        values: Shape (N, positions, channels).
    """

    values: Tensor


def select(y: Any, output: Callable[[Any], Any] | None, batch_size: int) -> tuple[Tensor, bool]:
    """Return the tensor to penalise from what a model returned, and whether each position is an output of its own.

    Args:
        y: What the model returned.
        output: The penalty's; default :func:`default_output`.
        batch_size: Rows to expect.

    Returns:
        The tensor, shape (N, *); and whether axis 1 are positions.

    Raises:
        TypeError: If that is no floating tensor.
        ValueError: If it does not keep the batch axis.
    """
    chosen = (default_output if output is None else output)(y)
    if isinstance(chosen, Positions):
        return check_output(chosen.values, batch_size), True
    return check_output(chosen, batch_size), False


def is_own(output: Callable[[Any], Any] | None) -> bool:
    """Say whether an ``output`` is of this file, or none: it runs no modules and draws no random numbers."""
    return output is None or getattr(getattr(output, "func", output), "__module__", None) == __name__


def per_position(y: Any, dim: int = 1) -> Positions:
    """Take each position of a dense output as an output of its own: ``output=per_position`` for segmentation.

    The quotient is then that of each position, and the penalty their mean, so that a weight suits pictures and texts
    of any size; ``estimate`` is the largest quotient of a position. For outputs of tokens, shape (N, L, C), use
    ``functools.partial(per_position, dim=-1)``.

    Args:
        y: What the model returns: a tensor of shape (N, C, *), or something that holds it as :func:`default_output`
            finds it.
        dim: The axis of the channels, which a position's norm runs over.

    Returns:
        Shape (N, positions, C).

    Raises:
        TypeError: If there is no floating tensor in ``y``.
        ValueError: If it has no axis for positions.

    References:
        Not in the report, whose outputs are vectors.
    """
    dense = _logits(y)
    if dense.dim() < 3:
        raise ValueError(
            f"Expected argument `y` to hold a dense output, shape (N, C, *), but got {tuple(dense.shape)}: without "
            "positions leave `output` out."
        )
    return Positions(dense.movedim(dim, -1).flatten(1, -2))


def root_probabilities(y: Any, dim: int | None = None) -> Tensor:
    """Return the square roots of a classifier's probabilities, √softmax: ``output=root_probabilities`` penalises them.

    Their ℓ2 distance is √2 times Hellinger's, at most √2. It ignores what changes no prediction: a shift of all logits,
    and by how much a class leads that is certain already. Quotients are smaller than those of logits, and want a larger
    weight: on MNIST at radius .1, 2 instead of .1 where it is constant, and 30 at the start where it falls to a
    thirtieth; on CIFAR-10 at 8/255, 10 to 20.

    Args:
        y: What the model returns: logits, or something that holds them as :func:`default_output` finds them.
        dim: The axis of the classes; None for the last one of two or three axes, as of texts, shape (N, L, C).

    Returns:
        Square roots of probabilities, the shape of the logits, at least float32.

    Raises:
        TypeError: If the model returns no floating tensor there.
        ValueError: If there are less than two classes, whose probabilities would all be 1, or ``dim`` is None and there
            are four axes or more, as of segmentation, shape (N, C, H, W), whose classes are on axis 1.

    References:
        Not in the report. M. S. Nikulin, *Hellinger distance*, Encyclopedia of Mathematics.
    """
    logits = at_least_single(_logits(y))
    if dim is None and logits.dim() > 3:
        raise ValueError(
            f"Expected argument `dim` to be the axis of the classes for logits of shape {tuple(logits.shape)}, but got "
            "None. For (N, C, H, W), as of segmentation, pass `output`=functools.partial(root_probabilities, dim=1)."
        )
    dim = -1 if dim is None else dim
    if logits.dim() < 2 or logits.shape[dim] < 2:
        raise ValueError(
            f"Expected argument `y` to hold logits of two classes or more, but got {tuple(logits.shape)}: of one, all "
            "probabilities are 1. For one logit z, shape (N, 1), as of a sigmoid, pass torch.cat([z, 0 * z], 1)."
        )
    # Not softmax().sqrt(), whose gradient is NaN where a probability vanishes.
    return torch.exp(logits.log_softmax(dim) / 2)


def smallest_margins(y: Any, num_points: int) -> Tensor:
    """Return which rows of a batch lie closest to a decision: a classifier's two largest logits differ least there.

    A function for ``choose``, made for ``output=root_probabilities`` with a weight that falls during training::

        LipschitzPenalty("tv", 30, radius=0.1, num_pairs=72, choose=smallest_margins, output=root_probabilities)

    On MNIST 72 to 104 points of a batch of 128, chosen so, then serve against ℓ∞ attacks at least as well as all of
    them. As many random points can do better where the weight is constant or the points are few (16). Labels play no
    part: a point that is wrong and sure of it is not chosen.

    Args:
        y: What the model returned: logits, shape (N, C), C ≥ 2, or something that holds them as
            :func:`default_output` finds them. The classes exclude each other; for one logit z, shape (N, 1), pass
            ``torch.cat([z, -z], 1)``.
        num_points: How many rows, ≥ 1.

    Returns:
        Row numbers, shape (min(num_points, N),), smallest margin first and rows with NaN last; if all are taken, in
        their own order.

    Raises:
        TypeError: If there is no floating tensor in ``y``, or ``num_points`` is no integer.
        ValueError: If the logits have another shape, or ``num_points`` is less than 1.

    References:
        Not in the report. T. Scheffer et al., *Active Hidden Markov Models for Information Extraction*, 2001, of
        probabilities, where these are margins of logits.
    """
    logits, count = _logits(y), check_count("num_points", num_points)
    if logits.dim() != 2 or logits.shape[1] < 2:
        raise ValueError(
            f"Expected argument `y` to hold logits of shape (N, C) with C >= 2, but got {tuple(logits.shape)}: a "
            "margin is between two classes. For one logit z, shape (N, 1), pass torch.cat([z, -z], 1); for dense "
            "outputs choose the rows yourself."
        )
    if count >= len(logits):
        return torch.arange(len(logits), device=logits.device)
    first, second = logits.detach().topk(2, dim=1).values.unbind(1)
    return (first - second).topk(count, largest=False).indices


def _logits(y: Any) -> Tensor:
    logits = default_output(y)
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        kind = logits.dtype if isinstance(logits, Tensor) else type(logits).__name__
        raise TypeError(f"Expected argument `y` to be logits or to hold them, a floating tensor, but got {kind}.")
    return logits
