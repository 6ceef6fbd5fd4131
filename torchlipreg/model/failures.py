"""Failures: what may be behind an error of a model that is held fixed, and the way out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from torchlipreg.model.parts.modules import has_own_mode

FORWARD_ERRORS = (RuntimeError, ValueError, IndexError, AttributeError, AssertionError)
OUTPUT_ERRORS = (TypeError, ValueError, KeyError, IndexError, AttributeError)
# Of an error that a wrong number of rows makes.
SIZE_WORDS = ("size", "shape", "dimension", "index", "broadcast", "batch")


def of_forward(error: Exception, modules: Iterable[nn.Module], dtype: torch.dtype | None) -> str | None:
    """Return the cause and the way out where the model was called in the wrong mode or precision; None for others."""
    if isinstance(error, AttributeError) and any(map(has_own_mode, modules)):
        return (
            f"The model failed where its `training` flags are False: {error} What a train() or eval() of its own "
            "makes is not there, as these are not called. Make it in __init__() or in forward()."
        )
    if "same dtype" in str(error):
        return (
            f"The model failed on {dtype}, the dtype of its first parameter: {error} Pass a function that "
            "brings its input to the dtype that the first layer needs: lambda z: model(z.bfloat16())."
        )
    if "does not require grad" in str(error) and not torch.is_grad_enabled():
        return (
            f"The model failed where it runs without gradients, as for targets (`one_sided`) and measures: {error} "
            "A forward that takes a gradient itself must do so in torch.enable_grad()."
        )
    return None


def of_rows(error: Exception, kwargs: Mapping[str, Any], batch_size: int | None, count: int) -> str | None:
    """Return the cause and the way out where the model may take no other number of points than the batch's.

    Args:
        error: Of the model, or of its output.
        kwargs: What it was called with beside points and rows.
        batch_size: Points in the loop's batch; None where nobody said.
        count: Points that it was called with.
    """
    if batch_size is None or not any(word in str(error) for word in SIZE_WORDS):
        return None
    others = {name: len(v) for name, v in kwargs.items() if isinstance(v, Tensor) and v.dim()}
    if others:
        return (
            f"Expected tensors in argument `model_kwargs` to have a row for each of the {batch_size} points "
            f"of `x`, or to fit any number of points, but got {others} rows, and the model failed: {error}"
        )
    if count == batch_size:
        return None
    return (
        f"The model failed on {count} points of a batch of {batch_size}: {error} If `model` closes over "
        "other inputs of the whole batch (masks, conditions, labels), pass them as argument `model_kwargs`, "
        "tensors with a row for each point of `x`, so that those of the points in use come along. A state of "
        "as many rows on the model, and a squeeze() of one row, do not go with `num_pairs`."
    )


def of_output(error: Exception, returned: Any) -> str:
    """Return the cause where the output in eval mode has no tensor to penalise, and the loop has train mode."""
    return (
        f"{error} The model, in eval mode as a penalty calls it, returned a {type(returned).__name__}: does it "
        "return something else in train mode?"
    )
