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
        """Call a function with a wider dtype; widen what it makes of no tensor, as ``torch.full`` does."""
        args, kwargs = [_wider(a) for a in args], {name: _wider(a) for name, a in (kwargs or {}).items()}
        made = CASTS.get(func, func)(*args, **kwargs)
        if type(made) is Tensor and made.dtype in WIDER and not any(isinstance(a, Tensor) for a in args):
            return made.to(WIDER[made.dtype])
        return made


def _wider(argument: Any) -> Any:
    return WIDER.get(argument, argument) if isinstance(argument, torch.dtype) else argument
