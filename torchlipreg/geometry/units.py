"""Units: from the normalised inputs of a training loop to raw ones, in which radius, bounds and norms are told."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor


class Units(NamedTuple):
    """The normalisation z = (x − mean) / std that a loop has applied to raw inputs x.

    Attributes:
        mean: One number, or one for each channel (axis 1).
        std: As many, > 0.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def raw(self, z: Tensor) -> Tensor:
        """Return x = std · z + mean, shape (N, *)."""
        return torch.addcmul(_channels(self.mean, z.dim(), z.dtype, z.device), z, self._std(z))

    def normalized(self, x: Tensor) -> Tensor:
        """Return z = (x − mean) / std, shape (N, *)."""
        return (x - _channels(self.mean, x.dim(), x.dtype, x.device)) / self._std(x)

    def _std(self, x: Tensor) -> Tensor:
        return _channels(self.std, x.dim(), x.dtype, x.device)


HALF = (torch.float16, torch.bfloat16)


def at_least_single(x: Tensor) -> Tensor:
    """Return a floating tensor in float32, or in float64 as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def as_plain(x: Tensor) -> Tensor:
    """Return a tensor of a subclass, such as torchvision's ``Image``, as a plain one, which is what states hold."""
    computes_itself = type(x).__torch_dispatch__ is not Tensor.__torch_dispatch__
    return x if type(x) is Tensor or computes_itself else x.as_subclass(Tensor)


RAW = Units((0.0,), (1.0,))  # of images in [0, 1], whose map would be two passes over each batch for nothing


@functools.lru_cache(maxsize=64)  # else each call would copy from the host and wait for the device
def _channels(values: tuple[float, ...], dim: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    shape = (1, -1, *[1] * (dim - 2)) if len(values) > 1 else [1] * dim
    return torch.tensor(values, dtype=dtype, device=device).view(shape)
