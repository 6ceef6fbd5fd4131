"""Plain formulas of operations whose forward-mode derivatives torch differentiates wrongly, or not at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from torchlipreg.geometry.linalg import LINEAR_ALGEBRA
from torchlipreg.geometry.units import HALF


class PlainFormulas(TorchFunctionMode):
    """Run some operations by others for the length of the context: norms, GLU, hard sigmoid, some of ``linalg``.

    torch's rules of the forward-mode derivatives of layer, instance and batch norms hold mean and variance constant.
    The derivative itself is right, but its gradient, which the limit ε → 0 needs, is silently wrong (pytorch issues
    196699, 196700, 198017); linear algebra has more of the kind. Of those of GLU and hard sigmoid it has none, and that
    of ``F.normalize`` is NaN at zero. Group norm, RMS norm and batch norm by running statistics are right.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, or its plain formula in its place."""
        return PLAIN.get(func, func)(*args, **(kwargs or {}))


def native_layer_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what ``torch.native_layer_norm`` does: also the mean and 1 / the standard deviation."""
    return _normalized(input, list(range(-len(normalized_shape), 0)), weight, bias, eps)


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    """Return what ``torch.layer_norm`` and ``torch.nn.functional.layer_norm`` do."""
    return native_layer_norm(input, normalized_shape, weight, bias, eps)[0]


def glu(input: Tensor, dim: int = -1) -> Tensor:
    """Return what ``torch.nn.functional.glu`` does."""
    a, b = input.chunk(2, dim)
    return a * b.sigmoid()


def hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    """Return what ``torch.nn.functional.hardsigmoid`` does."""
    y = (input + 3).clamp(0, 6) / 6
    return input.copy_(y) if inplace else y


def normalize(input: Tensor, p: float = 2.0, dim: Any = 1, eps: float = 1e-12, out: Tensor | None = None) -> Tensor:
    """Return what ``torch.nn.functional.normalize`` does, with derivatives at zero, the rows of padding, too."""
    if p != 2 or out is not None:
        return F.normalize(input, p, dim, eps, out)
    squares = (input.float() if input.dtype in HALF else input).square().sum(dim, keepdim=True)
    is_long = squares > eps**2
    length = torch.where(is_long, torch.where(is_long, squares, 1.0).sqrt(), eps)
    return input / length.to(input.dtype)


def _by_own_statistics(norm: Callable[..., Tensor], first_axis: tuple[int, ...]) -> Callable[..., Tensor]:
    """Return what ``torch.batch_norm`` or ``torch.instance_norm`` does: means over some first axes and all pixels."""

    def plain(
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        by_input: bool,
        momentum: float,
        eps: float,
        cudnn_enabled: bool = True,
    ) -> Tensor:
        if not by_input or running_mean is not None:  # which it uses, or updates
            y = norm(input, weight, bias, running_mean, running_var, by_input, momentum, eps, cudnn_enabled)
            if not by_input:
                return y
        axes, shape = [*first_axis, *range(2, input.dim())], (-1, *[1] * (input.dim() - 2))
        weight, bias = (None if p is None else p.view(shape) for p in (weight, bias))
        return _normalized(input, axes, weight, bias, eps)[0]

    return plain


def _functional(plain: Callable[..., Tensor], name: str, default: bool) -> Callable[..., Tensor]:
    """Return a norm with the arguments of ``torch.nn.functional``, in their order and with their defaults."""

    def functional(
        input: Tensor,
        running_mean: Tensor | None = None,
        running_var: Tensor | None = None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        by_input: bool = default,
        momentum: float = 0.1,
        eps: float = 1e-5,
        **named: bool,
    ) -> Tensor:
        by_input = named.get(name, by_input)
        return plain(input, weight, bias, running_mean, running_var, by_input, momentum, eps)

    return functional


_batch_norm = _by_own_statistics(torch.batch_norm, first_axis=(0,))
_instance_norm = _by_own_statistics(torch.instance_norm, first_axis=())
PLAIN: dict[Any, Callable[..., Any]] = {
    F.glu: glu,
    F.hardsigmoid: hardsigmoid,
    F.layer_norm: layer_norm,
    F.normalize: normalize,
    torch.layer_norm: layer_norm,
    torch.native_layer_norm: native_layer_norm,
    F.batch_norm: _functional(_batch_norm, "training", default=False),
    torch.batch_norm: _batch_norm,
    F.instance_norm: _functional(_instance_norm, "use_input_stats", default=True),
    torch.instance_norm: _instance_norm,
    **LINEAR_ALGEBRA,
}


def _normalized(
    input: Tensor, axes: list[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    is_half = input.dtype in HALF
    h = input.float() if is_half else input
    mean = h.mean(axes, keepdim=True)
    h = h - mean
    scale = (h.square().mean(axes, keepdim=True) + eps).rsqrt()
    y = h * scale
    y = y if weight is None else y * weight
    y = y if bias is None else y + bias
    wide = is_half and input.is_cuda and torch.is_autocast_enabled("cuda")  # where norms return float32
    return y if wide else y.to(input.dtype), mean, scale
