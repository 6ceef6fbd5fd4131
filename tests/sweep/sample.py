"""One model with inputs that it takes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Sample(NamedTuple):
    """A model in float64, and how to call it with a batch alone."""

    net: nn.Module
    x: Tensor
    call: Callable[[nn.Module, Tensor], Any] = lambda net, z: net(z)
    detail: str = ""
    bounds: tuple[float, float] | None = None  # outside of which the model fails


class Skip(Exception):
    """Why a model is left out."""


LARGEST = 30_000_000  # parameters


def check_size(net):
    size = sum(p.numel() for p in net.parameters())
    if size > LARGEST:
        raise Skip(f"too large: {size / 1e6:.0f} million parameters")


def stirred(net):
    """Move parameters and statistics off their initial values, where many a term, or the slope, vanishes."""
    with torch.no_grad():
        for p in net.parameters():
            if p.is_floating_point() and p.numel() and bool((p == p.flatten()[0]).all()):
                p.add_(0.1 * torch.randn_like(p))
            if p.is_floating_point() and p.dim() > 1 and p.numel() > p.shape[0]:
                small = float(p.std() * p[0].numel() ** 0.5)  # 1 keeps the size of activations
                p.mul_(1 / small if 0 < small < 1 else 1.0)
        for m in net.modules():
            if isinstance(getattr(m, "running_var", None), Tensor) and isinstance(m, nn.modules.batchnorm._NormBase):
                m.running_mean.add_(0.1 * torch.randn_like(m.running_mean))
                m.running_var.mul_(1 + 0.3 * torch.rand_like(m.running_var))
    return net


def first_that_runs(builds):
    """Return the first of some samples, smallest inputs first, that the model takes in eval and train mode."""
    error = None
    for build in builds:
        try:
            sample = build()
            check_size(sample.net)
            net = stirred(sample.net.double())
            with torch.no_grad():
                for mode in (True, False):
                    sample.call(net.train(mode), sample.x.clone())
        except Exception as e:
            error = error or e
            continue
        return sample
    raise Skip(
        f"cannot be run: {type(error).__name__}: {str(error).strip().splitlines()[0][:120] if str(error) else ''}"
    )
