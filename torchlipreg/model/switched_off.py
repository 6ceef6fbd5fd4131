"""What of a module is switched off while it is held fixed: train mode, autocast, compiled calls, caches, logging."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from torchlipreg.model.internals.recomputation import checkpointed, recomputes
from torchlipreg.model.parts.modules import is_on_cudnn, is_wrapper, unwrap

RNNS = (nn.RNN, nn.LSTM, nn.GRU)  # not subclasses, which may read the flag for a dropout of their own


def switch_off(m: nn.Module, *, eager: bool) -> None:
    """Set a module's attributes to what they are to be in a penalty; whoever calls has noted what they were.

    Args:
        m: Not its children.
        eager: Step around ``torch.compile``.
    """
    values = m.__dict__
    # The flag, not eval(): an overridden train() may edit weights, as LoRA's merge does. cuDNN's RNN backward needs
    # train mode, so its dropout goes instead.
    needs_train_mode = type(m) in RNNS and is_on_cudnn(m)
    if "training" in values:  # OptimizedModule has no flag of its own
        values["training"] = needs_train_mode
    if needs_train_mode:
        values["dropout"] = 0.0
    if is_wrapper(m):  # reached through a function: see modules.unwrap
        values["forward"] = unwrap(m)
    elif "_original_forward" in values:  # Accelerate's mixed precision enters autocast inside model.forward
        values["forward"] = values["_original_forward"]
    if eager and "_compiled_call_impl" in values:
        values["_compiled_call_impl"] = None  # of m.compile(), in place
    if "attention_bias_cache" in values:  # of timm's LeViT and others, filled in eval mode: would keep a graph
        values["attention_bias_cache"] = {}
    if "_current_fx_name" in values:  # a LightningModule may log in its forward: not what a penalty's forwards say
        values["log"] = _nothing
    if not eager and "gradient_checkpointing" in values and recomputes(m):
        values["forward"] = checkpointed(m, values.get("forward", partial(type(m).forward, m)))


def _nothing(*args: Any, **kwargs: Any) -> None:
    """Stand for a method that is not to do its work."""
