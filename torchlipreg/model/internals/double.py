"""Double precision inside of a forward: what a model casts to single precision, or makes in it, is double."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

WIDER = {torch.float32: torch.float64, torch.complex64: torch.complex128}
CASTS: dict[Any, Any] = {Tensor.float: Tensor.double, Tensor.cfloat: Tensor.cdouble}  # type: ignore[attr-defined]


class InDouble(TorchFunctionMode):
    """Single precision is double for the length of the context; half stays, as its rounding is part of a model."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function of tensors with a wider dtype; widen what is made of none, or of bits."""
        kwargs = kwargs or {}
        of_tensors = any(isinstance(a, Tensor) for a in (*args, *kwargs.values()))
        if of_tensors and not _reads_bits(func, args, kwargs):
            args, kwargs = [_wider(a) for a in args], {name: _wider(a) for name, a in kwargs.items()}
            return CASTS.get(func, func)(*args, **kwargs)
        made = func(*args, **kwargs)  # the same random numbers, the same rounding of constants
        return made.to(WIDER[made.dtype]) if type(made) is Tensor and made.dtype in WIDER else made


def _reads_bits(func: Any, args: Any, kwargs: Any) -> bool:
    """Say whether bytes or integers are read as numbers: in a wider dtype they would be others, and half as many."""
    takes_dtype = any(isinstance(a, torch.dtype) for a in (*args, *kwargs.values()))
    return func is Tensor.view and takes_dtype and args[0].dtype not in WIDER.values()


def _wider(argument: Any) -> Any:
    return WIDER.get(argument, argument) if isinstance(argument, torch.dtype) else argument
