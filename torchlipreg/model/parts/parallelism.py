"""Which kinds of parallelism can take a penalty: refused at once where it would hang or be silently wrong."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor, nn

from torchlipreg.model.internals.graph import leaves
from torchlipreg.model.parts.modules import inside_fabric

# Models that were looked at already, and whether FSDP1 wraps a part of them. In each call it would take ViT-tiny .3 ms.
_HOLDS_FSDP1: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def check_parallelism(model: Any) -> None:
    """Raise at once where a penalty under this kind of parallelism would hang or be silently wrong.

    What a model is made of is looked at in its first call only: it has to be parallelised before.

    Args:
        model: As the training loop calls it, wrappers included.

    Raises:
        RuntimeError: If the model's parallelism is not supported.
    """
    if not (isinstance(model, nn.Module) and dist.is_available() and dist.is_initialized()):
        return
    if isinstance(model, nn.parallel.DistributedDataParallel) and model._join_config.enable:
        raise RuntimeError(
            "DDP's join() cannot take a penalty: a rank that has run out of data would miss the penalty's collectives. "
            "Leave it out, and let such a rank call model and penalty with an empty batch."
        )
    if model not in _HOLDS_FSDP1:
        _check_parameters(model)
        _HOLDS_FSDP1[model] = any(map(_is_fsdp1, model.modules()))
    if _HOLDS_FSDP1[model] and torch.is_grad_enabled():
        if any(_is_fsdp1(m) and m.__dict__["_sync_gradients"] is False for m in model.modules()):
            raise RuntimeError(
                "FullyShardedDataParallel (FSDP1) cannot take a penalty under no_sync(): it fails in backward. "
                "Accumulate gradients without no_sync(), or shard with fully_shard (FSDP2)."
            )


def _check_parameters(model: nn.Module) -> None:
    sharded = False
    for module in model.modules():
        sharded = sharded or _is_fsdp2(module)
        for parameter in module._parameters.values():
            if hasattr(parameter, "ds_id"):
                raise RuntimeError(
                    "DeepSpeed ZeRO-3 cannot take a penalty: it fails with several forwards in one backward "
                    "(microsoft/DeepSpeed issue 5321). Use ZeRO-1 or ZeRO-2, or FSDP2."
                )
            if not sharded and type(parameter).__name__ == "DTensor":
                raise RuntimeError(
                    "The model's parameters are DTensors of tensor parallelism, which needs the same pairs on all its "
                    "ranks. The penalty supports data parallelism: DDP and FSDP2 (fully_shard)."
                )


def check_forward_mode(modules: Iterable[nn.Module]) -> None:
    """Raise RuntimeError where the limit ε → 0 would crash the process: FSDP1 has no forward-mode derivative."""
    if any(map(_is_fsdp1, modules)):
        raise RuntimeError(
            "FullyShardedDataParallel (FSDP1) cannot compute the limit ε → 0 (radius 0, or under what its dtype "
            "resolves). Use a larger `radius` and full precision, or shard with fully_shard (FSDP2)."
        )


def check_unused_parameters(model: Any, outputs: Any, penalty: Tensor) -> None:
    """Raise where DDP's search for unused parameters would fail in backward, with a message that helps nobody.

    Args:
        model: As the training loop calls it.
        outputs: What it returned to the loop.
        penalty: With its graph.

    Raises:
        RuntimeError: If the penalty uses parameters that the loop's forward does not, a branch for evaluation only,
            and DDP has been told to mark as done what that forward leaves out.
    """
    model = inside_fabric(model)
    model = getattr(model, "_orig_mod", model)
    if not isinstance(model, nn.parallel.DistributedDataParallel):
        return
    if not model.find_unused_parameters or model.static_graph:
        return
    extra = leaves(penalty) - leaves(outputs)
    names = [name for name, parameter in model.module.named_parameters() if id(parameter) in extra]
    if names:
        raise RuntimeError(
            f"The penalty, which sees the model in eval mode, uses parameters that the training forward does not: "
            f"{', '.join(names)}. With find_unused_parameters=True, DDP would mark them ready twice. Use "
            "static_graph=True instead, or leave both out."
        )


def is_sharded(modules: Collection[nn.Module]) -> bool:
    """Say whether FSDP (1 or 2) shards one of the modules, and so puts parameters in place in its forward."""
    return any(map(_is_fsdp1, modules)) or any(map(_shards, {*map(type, modules)}))


def is_wrapped_by_fsdp1(modules: Collection[nn.Module]) -> bool:
    """Say whether it is FSDP1 that shards, which keeps its own state and tensors among the modules' attributes."""
    return any(map(_is_fsdp1, modules))


def _is_fsdp1(m: nn.Module) -> bool:
    return "_sync_gradients" in m.__dict__


def _is_fsdp2(m: nn.Module) -> bool:
    return _shards(type(m))  # a miss on a module takes ten times as long


def _shards(kind: type) -> bool:
    return hasattr(kind, "set_requires_gradient_sync")
