"""Hugging Face Accelerate: one line makes a penalty part of an ``Accelerator``'s checkpoints."""

from __future__ import annotations

import os
import weakref
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor

from torchlipreg import LipschitzPenalty
from torchlipreg.checks import check_instance
from torchlipreg.notice import warn_user

FILE = "lipschitz_penalty_{}.bin"


class _Prepared(NamedTuple):
    """A penalty's place in the checkpoints of an accelerator, what this had prepared then, and the hooks on it.

    Optimizers, whose wrappers are made anew where the same model is prepared again; models where there is none.
    """

    place: int
    held: list[weakref.ref[Any]]
    hooks: list[Any]


_PREPARED: weakref.WeakKeyDictionary[Accelerator, list[_Prepared]] = weakref.WeakKeyDictionary()


def prepare_penalty(accelerator: Accelerator, penalty: LipschitzPenalty) -> LipschitzPenalty:
    """Save and load a penalty with the accelerator's checkpoints, the pairs of all processes included.

    One line after ``accelerator.prepare``::

        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        penalty = prepare_penalty(accelerator, LipschitzPenalty("tv", weight=0.05))
        for x, y in loader:
            with accelerator.accumulate(model):
                out = model(x)
                accelerator.backward(criterion(out, y) + penalty(model, x, out))
                ...

    ``save_state`` writes one file beside the model's, gathered from all processes, and ``load_state`` reads it back
    into any number of them; a checkpoint from before the penalty loads with a warning, and the pairs start anew. It
    is no ``register_for_checkpointing``, which would keep the pairs of process 0 alone and refuse older checkpoints.

    Mixed precision needs nothing more: the penalty computes in float32 inside, the training forward stays as it was.
    Nor does gradient accumulation: ``accelerator.backward`` divides the loss, penalty included. To save time, apply
    the penalty only where gradients are synchronised, which has the same expected gradient, but for a last group of
    fewer batches::

        if accelerator.sync_gradients:
            loss = loss + accelerator.gradient_accumulation_steps * penalty(model, x, out)

    Args:
        accelerator: The training script's.
        penalty: Prepare each one once, in the same order in every run; anew, after ``accelerator.prepare``, where
            ``accelerator.free_memory`` has let go of the model, as where ``find_executable_batch_size`` tries again.

    Returns:
        The same penalty.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If the accelerator trains with DeepSpeed ZeRO-3, which fails with two forwards in one backward.
    """
    check_instance("accelerator", accelerator, Accelerator)
    check_instance("penalty", penalty, LipschitzPenalty)
    if accelerator.distributed_type == DistributedType.DEEPSPEED and _zero_stage(accelerator) == 3:
        raise ValueError(
            "Expected argument `accelerator` to train without DeepSpeed ZeRO-3, which fails with several forwards in "
            "one backward (microsoft/DeepSpeed issue 5321). Choose ZeRO-1 or ZeRO-2, or FSDP2, in its configuration."
        )
    models, optimizers = (getattr(accelerator, name, []) for name in ("_models", "_optimizers"))
    prepared = _without_freed(_PREPARED.get(accelerator, []), [*models, *optimizers])
    place = next(i for i in range(len(prepared) + 1) if i not in {other.place for other in prepared})
    name = FILE.format(place)
    hooks = [  # which run on every process
        accelerator.register_save_state_pre_hook(_Save(accelerator, penalty, name)),
        accelerator.register_load_state_pre_hook(_Load(penalty, name)),
    ]
    _PREPARED[accelerator] = [*prepared, _Prepared(place, [*map(weakref.ref, optimizers or models)], hooks)]
    return penalty


def _without_freed(prepared: list[_Prepared], held: list[Any]) -> list[_Prepared]:
    """Let go of the penalties whose optimizers, or models, the accelerator has let go of, and return the others."""
    kept = [p for p in prepared if not p.held or any(ref() is one for ref in p.held for one in held)]
    for freed in prepared:
        if freed not in kept:
            for hook in freed.hooks:
                hook.remove()
    return kept


def log_values(penalty: LipschitzPenalty, value: Tensor | None = None) -> dict[str, float]:
    """Return what is worth logging as plain numbers, which every tracker takes; waits for the GPU, so not every step.

    Warns once of batches that were not finite since the last time.

    Args:
        penalty: After a call.
        value: What the call returned, to be logged as ``penalty``.

    Returns:
        ``lipschitz`` (the largest quotient, a lower bound), ``lipschitz_weight``, ``lipschitz_radius``,
        ``penalty_share`` (of this process) and ``penalty``, where they exist. Ready for ``accelerator.log``.
    """
    penalty.warn_of_data()
    values = {"lipschitz": float(penalty.estimate), "lipschitz_weight": penalty.weight}
    if penalty.radius is not None:
        values["lipschitz_radius"] = penalty.radius
    if penalty.share is not None:
        values["penalty_share"] = penalty.share
    if value is not None:
        values["penalty"] = float(value.detach())
    return values


def save_penalty(penalty: LipschitzPenalty, path: Path, *, writes: bool) -> None:
    """Save a penalty with the pairs of all processes. Collective for max and sum: every process must call it.

    Args:
        penalty: This process's.
        path: Of the file, in a folder that exists where it is written.
        writes: Whether this process writes it.
    """
    penalty.synchronize()
    if writes:
        torch.save(penalty.state_dict(), path)


def load_penalty(penalty: LipschitzPenalty, path: Path) -> None:
    """Load this process's part of what :func:`save_penalty` saved; without a file warn, and the pairs start anew.

    Args:
        penalty: This process's.
        path: Of the file.

    Raises:
        ValueError: If it belongs to another kind of penalty.
    """
    if path.exists():
        state = torch.load(path, map_location="cpu", weights_only=True)
        try:
            penalty.load_state_dict(state)
        except ValueError as error:
            raise ValueError(f"{error} The state is the file {path}: without it the pairs start anew.") from error
    else:
        warn_user(f"There is no penalty in {path.parent}: its pairs start anew.")


class _Save:
    def __init__(self, accelerator: Accelerator, penalty: LipschitzPenalty, name: str) -> None:
        self.accelerator, self.penalty, self.name = accelerator, penalty, name

    def __call__(self, models: list[Any], weights: list[Any], directory: str | os.PathLike[str]) -> None:
        each_node = self.accelerator.project_configuration.save_on_each_node
        writes = self.accelerator.is_local_main_process if each_node else self.accelerator.is_main_process
        save_penalty(self.penalty, Path(directory, self.name), writes=writes)


class _Load:
    def __init__(self, penalty: LipschitzPenalty, name: str) -> None:
        self.penalty, self.name = penalty, name

    def __call__(self, models: list[Any], directory: str | os.PathLike[str]) -> None:
        load_penalty(self.penalty, Path(directory, self.name))


def _zero_stage(accelerator: Accelerator) -> int:
    plugin = accelerator.state.deepspeed_plugin
    return int(plugin.zero_stage or 0) if plugin else 0
