"""Advice: what to tell the user of a penalty whose share of the gradient is wrong, and what to set."""

from __future__ import annotations

from torchlipreg.call.watch import INERT, LOOKS


def advice(verdict: str, share: float, weight: float) -> str:
    """Return what to tell the user: what is wrong, the probable causes, and what to set."""
    if verdict == "rounded":
        return (
            f"The penalty sees rounding errors: in {LOOKS} looks outputs moved from x to x′ by little more than what "
            "their dtype rounds of them. Let the model give outputs near zero (standardised targets, a common offset "
            "added behind it), train in more precision, or give a larger `radius`; radius=0 takes derivatives instead "
            "of differences."
        )
    if verdict == "inert":
        return (
            f"The penalty does nothing: in {LOOKS} looks its gradient was under {INERT:g} of the task's (now "
            f"{share:.1g}). Probable causes: inputs that are normalised by mean and standard deviation (give "
            "`normalization`=(mean, std)); a `radius` or `scale` that is small for the inputs' units; outputs that "
            f"are small (probabilities instead of logits); a `weight` that is too small: {0.1 * weight / share:.1g} "
            "would make it a tenth."
            if share > 0
            else f"The penalty does nothing: in {LOOKS} looks its gradient was zero. Does `model` use its input?"
        )
    return (
        f"The penalty holds the outputs under half of what the task wants: in {LOOKS} looks its gradient was as large "
        f"as the task's (now {share:.2g} times), and the model is next to constant, if the loss is a mean over rows. "
        "Lower the `weight`, or bring it in with `WeightWarmup`; check that `radius` and `scale` are in the units of "
        "the inputs, and where these are normalised, give `normalization`=(mean, std)."
    )
