"""BatchNorm in train mode: running statistics whose values stay, while their gradient follows the parameters."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

KNOWN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
# Subclasses with an activation of their own behind the textbook's formula.
KNOWN_BY_NAME = {("timm.layers.norm_act", name) for name in ("BatchNormAct2d", "SyncBatchNormAct")}


class _ChannelMoments(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor) -> tuple[Tensor, Tensor]:
        axes = _all_but_channels(h)
        mean = h.mean(axes, keepdim=True)
        var, mean = (h - mean).square_().mean(axes), mean.flatten()
        ctx.save_for_backward(h, mean)  # an output, not the mean that broadcasts: else second derivatives miss it
        return var, mean

    @staticmethod
    def backward(ctx: Any, var_gradient: Tensor, mean_gradient: Tensor) -> Tensor:
        """Return (2 (h − mean) ∂var + ∂mean) / number of values."""
        h, mean = ctx.saved_tensors
        number, shape = h.numel() / len(mean), (1, -1, *[1] * (h.dim() - 2))
        gradient: Tensor = (h - mean.view(shape)).mul_(2 / number * var_gradient.view(shape))
        return gradient.add_((mean_gradient / number).view(shape))


def channel_moments(h: Tensor) -> tuple[Tensor, Tensor]:
    """Return the variance (of the population) and the mean over all but axis 1 of h, shape (C,) each."""
    if h.is_cpu and h.dtype in (torch.float32, torch.float64):  # half the time of var_mean; squares overflow in float16
        var, mean = _ChannelMoments.apply(h)
        return var, mean
    return torch.var_mean(h, _all_but_channels(h), correction=0)


def _all_but_channels(h: Tensor) -> list[int]:
    return [0, *range(2, h.dim())]


def tracks_batches(m: nn.Module) -> bool:
    """Say whether a module is a norm in train mode whose running statistics eval mode would use, of whatever make."""
    if not m.training or m._buffers.get("running_mean") is None or type(m) is nn.Module:  # torch.export's mere holders
        return False
    # Others may hold constants, say torchvision's or detectron2's frozen norms, and are the same in both modes.
    return (
        isinstance(m, nn.modules.batchnorm._NormBase) or "momentum" in m.__dict__ or "num_batches_tracked" in m._buffers
    )


def depends_on_batch(m: nn.Module) -> bool:
    """Say whether a module is a BatchNorm that takes the batch's statistics in eval mode too."""
    return isinstance(m, nn.modules.batchnorm._BatchNorm) and m._buffers.get("running_mean") is None


def can_follow(m: nn.Module) -> bool:
    """Say whether a norm is known, by its class, to follow the textbook's formula, its parameters in plain sight."""
    # A subclass may scale by 1 + weight, split the batch or mix statistics.
    known = type(m) in KNOWN or (type(m).__module__, type(m).__name__) in KNOWN_BY_NAME
    return known and {"weight", "bias"} == m._parameters.keys() and not m._forward_pre_hooks


def fold(
    eps: float, moments: tuple[Tensor, Tensor], parameters: dict[str, Any], buffers: dict[str, Tensor | None]
) -> tuple[dict[str, Any], dict[str, Tensor | None]]:
    """Return parameters and buffers with which eval-mode BatchNorm lets its statistics follow those of a batch.

    In training, whatever an earlier layer does to the mean and the scale of a channel, BatchNorm undoes. With running
    statistics held constant a penalty does not see that: it drives activations away from their statistics, faster
    than these can follow, until the model in eval mode is flat and wrong while its training loss looks fine. So the
    mean and the variance of the batch, b(θ), lend the running ones, r, their gradient::

        mean = r_mean + (b_mean − stop(b_mean))        var + ε = (r_var + ε) · (b_var + ε) / stop(b_var + ε)

    The values are those of eval mode, and no row depends on another. A module that is called several times follows the
    last call. On several processes each follows its own batch, as BatchNorm does. Not in the report, which has no
    BatchNorm.

    Args:
        eps: ε of the module.
        moments: Variance and mean of its input over a batch of data points, shape (C,) each.
        parameters: Its ``weight`` and ``bias``.
        buffers: Its buffers, the running statistics among them.

    Returns:
        ``weight`` and ``bias``, shape (C,), into which the normalisation is folded; and the buffers, with the running
        statistics of an input that is normalised already.
    """
    running_mean, running_var = cast(Tensor, buffers["running_mean"]), cast(Tensor, buffers["running_var"])
    var, mean = moments
    var = (var + eps).clamp_min(torch.finfo(var.dtype).tiny)
    scale = ((running_var + eps) * (var / var.detach())).rsqrt()
    if parameters["weight"] is not None:
        scale = scale * parameters["weight"]
    shift = -(running_mean + (mean - mean.detach())) * scale
    if parameters["bias"] is not None:
        shift = shift + parameters["bias"]
    standard = {"running_mean": torch.zeros_like(running_mean), "running_var": torch.full_like(running_var, 1 - eps)}
    return {"weight": scale, "bias": shift}, {**buffers, **standard}
