"""Seen: what forwards have shown of a model, and how it is told."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Seen(NamedTuple):
    """What a few forwards on the first batch have shown of a model.

    Attributes:
        dtype: In which it computes; the half precision in which some operation ran, or float32 to which float64 was
            rounded.
        stateful: The forward leaves something on the modules, from which the next one would start.
        drifts: Its values depend on that: after another forward the model is another function.
        draws: The forward draws random numbers of torch's, whether or not its values show it.
        error: What to tell: two forwards at the same points gave different values, or some are not finite. No
            exception, whose traceback would keep the model alive.
        coupled: A row's values depend on the other rows.
        graph: The output requires a gradient.
        no_path: Its values depend on the input, but autograd finds no path there.
        flat: There is a path, but the gradient to the input is zero, though the outputs differ from point to point.
        undefined: At some point the gradient to the input is NaN, though the outputs are finite.
        whole: It takes the loop's batch, but no part of it.
        written: The operation that writes into what nobody puts back, and the shape of that; None without one.
        norms: What the user should know about norms in train mode; None if there is nothing.
        reruns: A part of it runs again in its backward, and is no checkpoint.
        with_gradient: A backward was among what was looked at, unless the model is sharded.
        surrogate: Its derivative is not that of its values; None if that was not looked at, as outside of the limit.
    """

    dtype: torch.dtype
    stateful: bool
    drifts: bool
    draws: bool
    error: str | None
    coupled: bool
    graph: bool
    no_path: bool
    flat: bool
    undefined: bool
    whole: bool
    written: str | None
    norms: str | None
    reruns: bool
    with_gradient: bool
    surrogate: bool | None = None

    def cautions(self) -> dict[str, str]:
        """Return what the user should know of such a model, by what it is about: each is told once."""
        found = {
            "coupled": COUPLED_ROWS if self.coupled else None,
            "hidden": HIDDEN_INPUT if self.no_path and self.graph else None,  # without a graph an ascent says so
            "flat": FLAT if self.flat else None,
            "undefined": UNDEFINED if self.undefined else None,
            "written": self.written and WRITTEN.format(self.written),
            "norms": self.norms,
        }
        return {about: text for about, text in found.items() if text}


COUPLED_ROWS = (
    "The values of argument `model` at a point depend on the other rows of the batch, as with statistics or scales of "
    "a batch, attention over it, a limited capacity of experts or a joint stopping rule: a quotient is not that of a "
    "function of one point, and one of a small radius may measure the other rows. Use running statistics, another "
    "norm, or what treats each row alone. Where the batch is not the first axis (`batch_first`=False), put it there."
)
HIDDEN_INPUT = (
    "The gradient of argument `model` to its input does not exist, though its outputs depend on it: a part runs under "
    "no_grad() or is detached. Points cannot move uphill, and only random directions are seen. Freeze parts by "
    "requires_grad_(False) instead."
)
SURROGATE = (
    "The derivative of argument `model` is not that of its values: a part is detached or has a gradient of its own, as "
    "of straight-through estimators. What is computed in the limit ε → 0, and by `operator_norm`, is about that "
    "gradient: with a `radius` a penalty and `lipschitz_lower_bound` take differences of values."
)
FLAT = (
    "The gradient of argument `model` to its input is zero on the first batch, though its outputs differ: it rounds, "
    "saturates, or a gate is at zero. As long as that lasts, points cannot move uphill, and only random directions are "
    "seen."
)
UNDEFINED = (
    "The gradient of argument `model` to its input is NaN at points of the first batch, though its outputs are finite, "
    "as that of the root of a square, a norm or a distance is at 0. Such points cannot move uphill, and only "
    "random directions are seen; `operator_norm` has no value there. Keep the model off them, as by sqrt(x + 1e-6), "
    "or, behind torch.where, on both of its sides."
)
WRITTEN = (
    "A forward of argument `model` writes into a tensor that was there before it and is no buffer ({}): what forwards "
    "of the penalty write there, at other points, stays. Make it a buffer (`register_buffer`), which is put back; a "
    "parameter, as of a momentum teacher, write where `self.training` is true or outside of the forward. Nothing is "
    "wrong if it is only a place to compute in, of which nothing is returned."
)
RERUN = (
    "A part of `model` runs anew in its backward, as in reversible blocks and adjoint solvers, and Dropout, BatchNorm "
    "or the like are in train mode. If they are in that part, the penalty's gradient is wrong and running statistics "
    "take in its pairs, unless the backward fails. Put them in eval mode there, or use torch.utils.checkpoint."
)


def random_values(drawn: str | None, y: Tensor | None, again: Tensor | None) -> str:
    """Return the message for a model that is random: two values at the same points, if they are at hand."""
    off = "" if y is None or again is None or y.shape != again.shape else f" by up to {(y - again).abs().amax():.2g}"
    if drawn is None and y is not None:
        return (
            "Expected argument `model` to be a function of its input, but two forwards at the same points differ"
            f"{off}, and no random numbers of torch's are drawn: it changes itself in each forward, as by power "
            "iterations on vectors that are parameters, or draws from elsewhere. Let it do so only where "
            "`self.training` is true; torch.nn.utils.parametrizations.spectral_norm does."
        )
    cause = f" It draws random numbers ({drawn})." if drawn else ""
    return (
        "Expected argument `model` to be a function of its input with Dropout and the like switched off, but two "
        f"forwards at the same points differ{off}.{cause} A difference quotient would measure the noise. Draw random "
        "numbers, and write into parameters, only where `self.training` is true. A penalty also takes "
        "`stochastic`='same', which draws the same at both points of a pair."
    )


def not_finite(y: Tensor) -> str:
    """Return the message for outputs that are not finite at finite points."""
    strange = y[~y.isfinite()]
    return (
        f"Expected argument `model` to have finite outputs, but on the first batch {len(strange)} of {y.numel()} are "
        f"{strange[0].item()}, whose difference is NaN. Mask with a finite number, say -1e9, or give an `output` that "
        "takes masks, as torchlipreg.outputs.root_probabilities does."
    )
