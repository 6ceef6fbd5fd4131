"""LipschitzTask: a timm training task with a penalty. Long: it documents what it overrides."""

from __future__ import annotations

import functools
from typing import Any, cast

import torch
from timm.task import TrainingTask
from torch import Tensor, nn

from torchlipreg import LipschitzPenalty
from torchlipreg.checks import check_instance
from torchlipreg.distributed import world_size
from torchlipreg.model.parts.modules import unwrap
from torchlipreg.notice import warn_first_rank
from torchlipreg.outputs import root_probabilities

STATE_KEY = "lipschitz"
GATHER_INTERVAL = 500  # optimizer steps: seldom, as all pairs of all ranks travel
_CLASSES: dict[tuple[type, ...], Any] = {}  # that were made, by the penalised class and the task's own


class LipschitzTask(TrainingTask):
    """A timm training task whose loss includes a Lipschitz penalty.

    The task that is handed in *becomes* the penalised one and is what comes back, still an instance of its own class:
    its class is replaced by a subclass of both. Whoever holds it holds the penalised one::

        task = ClassificationTask(model, criterion)
        task = LipschitzTask(task, LipschitzPenalty("tv", weight=0.05))
        result = task(input, target)
        result["loss"].backward()

    The result is the task's, with the penalty added to ``loss``, and two detached tensors besides: ``penalty``, and
    ``lipschitz``, the largest quotient of the last training step, a lower bound. The penalty is added while the model
    is in training mode and gradients are on, never to a validation loss.

    The penalty sees what ``get_eval_model()`` returns, the model that timm validates and exports: in the distillation
    tasks the student alone, without projection, and with the output that it will have when deployed (a DeiT's mean of
    its two heads). The task's ``output`` serves as f(x) where it is the same, unless the penalty has an ``output``
    function other than ``root_probabilities``; otherwise f(x) takes a forward more, and there is no ``choose``.

    Call the task rather than its ``forward``, which stays the plain one.

    On several processes timm saves on rank 0 alone, so persistent pairs (max, sum) of all ranks are gathered before:
    whenever the evaluator of :meth:`create_evaluator` computes its distributed metrics, just before timm saves, and
    in every 500th :meth:`update_ema`, for checkpoints within an epoch, whose pairs are then a little older. Call
    :meth:`synchronize` in a loop that has neither.

    Args:
        task: Any ``timm.task.TrainingTask``, before or after ``compile`` and ``prepare_distributed``.
        penalty: Its state is saved in the task state, with its options.

    Raises:
        TypeError: If an argument has the wrong type, or the task has a penalty already.
        ValueError: If the penalty has ``choose`` and such an ``output`` function.
    """

    penalty: LipschitzPenalty

    def __new__(cls, task: TrainingTask, penalty: LipschitzPenalty) -> LipschitzTask:
        if not isinstance(task, TrainingTask):
            raise TypeError(f"Expected argument `task` to be a timm.task.TrainingTask, but got {type(task).__name__}.")
        if isinstance(task, LipschitzTask):
            raise TypeError("Expected argument `task` to be without a penalty, but got a LipschitzTask.")
        _check_penalty(penalty)
        task.__class__ = _class_of_both(cls, type(task))
        penalised = cast(LipschitzTask, task)
        penalised._set_penalty(penalty)
        return penalised

    def __init__(self, task: TrainingTask, penalty: LipschitzPenalty) -> None:
        pass  # the task was constructed long ago

    def _set_penalty(self, penalty: LipschitzPenalty) -> None:
        self.penalty = _check_penalty(penalty)
        self._options = _options(penalty)
        self._gathered_state: dict[str, Any] | None = None
        self._moved_since_gather = False
        self._updates = 0

    def __call__(self, input: Tensor, target: Any) -> dict[str, Any]:
        """Return the task's result, with the penalty in ``loss`` and beside it.

        Collective in training, if a process group is initialised.

        Args:
            input: Images, shape (N, C, H, W), mixed or not.
            target: What the task expects.

        Returns:
            The task's result, its ``loss`` with the penalty, ``penalty`` and ``lipschitz``, 0-dim.
        """
        result = super().__call__(input, target)
        loss = result["loss"]
        penalty = self._penalty_at(input, result) if self._applies() else loss.new_zeros(())
        if penalty.requires_grad:
            loss = loss + penalty
        return {**result, "loss": loss, "penalty": penalty.detach(), "lipschitz": self.penalty.estimate.clone()}

    def _applies(self) -> bool:
        return self.penalty.weight > 0 and self._is_training()

    def _is_training(self) -> bool:
        return torch.is_grad_enabled() and self._model().training

    def _penalty_at(self, input: Tensor, result: dict[str, Any]) -> Tensor:
        if not isinstance(input, Tensor):
            raise TypeError(
                f"Expected argument `input` to be a tensor, but got {type(input).__name__}: a penalty needs one tensor "
                "to move, which NaFlex batches have not. Train without the NaFlex loader, or with weight 0."
            )
        output = result.get("output")
        usable = isinstance(output, Tensor) and len(output) == len(input) and _takes_the_tasks_output(self.penalty)
        self._moved_since_gather = self.penalty.settings.persistent
        return self.penalty(self._model(), input, output if usable else None)

    def _model(self) -> nn.Module:
        model = self.get_eval_model()
        if not isinstance(model, nn.Module) or model is self:
            raise TypeError(
                f"Expected `get_eval_model()` of {type(self).__name__} to return its model, but got "
                f"{type(model).__name__}: define it, or set `trainable_module`."
            )
        return cast(nn.Module, unwrap(model))

    def prepare_distributed(self, device_ids: list[Any] | None = None, **ddp_kwargs: Any) -> TrainingTask:
        """Wrap the trainable module in DDP, as the task does, also where ``device_ids`` name the CPU.

        Args:
            device_ids: As for DDP. timm's train.py passes ``[cpu]`` on a CPU, which DDP refuses; it is dropped.
            **ddp_kwargs: As for DDP.

        Returns:
            This task.
        """
        if device_ids and all(isinstance(d, (str, torch.device)) and torch.device(d).type == "cpu" for d in device_ids):
            device_ids = None
        return super().prepare_distributed(device_ids=device_ids, **ddp_kwargs)

    def synchronize(self) -> None:
        """Gather the pairs of all ranks for saving, if they moved since the last time.

        Collective: every rank must call it. A no-op on one process.
        """
        if world_size() > 1 and self._moved_since_gather:
            self.penalty.synchronize()
            self._gathered_state = self.penalty.state_dict()
            self._moved_since_gather = False

    def update_ema(self, step: int | None = None) -> None:
        """Update the moving average, as the task does, and gather the pairs now and then. Collective.

        Args:
            step: As for the task.
        """
        super().update_ema(step=step)
        if self._updates % GATHER_INTERVAL == 0:
            self.synchronize()
        self._updates += 1

    def create_evaluator(self, **kwargs: Any) -> Any:
        """Return the task's evaluator, which gathers the pairs when it gathers its metrics.

        Args:
            **kwargs: As for the task.

        Returns:
            The evaluator.
        """
        evaluator = super().create_evaluator(**kwargs)  # type: ignore[no-untyped-call]
        compute = evaluator.compute

        @functools.wraps(compute)
        def compute_around(distributed: bool = False) -> Any:
            if distributed:  # only then it is certain that every rank is here
                self.synchronize()
            metrics = compute(distributed=distributed)
            self._after_validation(metrics)
            return metrics

        evaluator.compute = compute_around
        return evaluator

    def _after_validation(self, metrics: dict[str, Any]) -> None:
        """Do nothing; for tasks that step schedules."""

    def get_task_state(self, module: nn.Module | None = None, ema: bool = False) -> dict[str, Any]:
        """Return the task's state, and the penalty's under ``"lipschitz"``. Not collective.

        Args:
            module: As for the task.
            ema: Of the moving average: without the penalty's.

        Returns:
            The state: tensors and plain values only.
        """
        state = super().get_task_state(module=module, ema=ema)
        if ema:
            return state
        penalty_state = self._gathered_state or self.penalty.state_dict()
        today = {"weight": self.penalty.weight, "radius": self.penalty.radius}  # pairs alone may be older
        penalty_state = {**penalty_state, **today}
        return {**state, STATE_KEY: {"options": self._options, "state": penalty_state}}

    def load_task_state(
        self, state: dict[str, Any] | None, strict: bool = True, module: nn.Module | None = None, ema: bool = False
    ) -> None:
        """Restore the task's state and the penalty's; without one the pairs start anew, with a warning.

        Weight and radius are the saved ones, unless this penalty was constructed with others.

        Args:
            state: From :meth:`get_task_state`, of any number of processes, or of a task without a penalty.
            strict: As for the task.
            module: As for the task.
            ema: As for the task; the penalty has no moving average.
        """
        rest = dict(state or {})
        saved = rest.pop(STATE_KEY, None)
        super().load_task_state(rest or None, strict=strict, module=module, ema=ema)
        if not ema and (saved is not None or self.penalty.weight > 0):
            self._load_penalty(saved)

    def _load_penalty(self, saved: dict[str, Any] | None) -> dict[str, float]:
        """Restore the penalty's state; return weight and radius, those of them that are not the checkpoint's."""
        if saved is None:
            warn_first_rank("The checkpoint holds no penalty, so its pairs start anew.")
            return {}
        changed = [name for name, value in self._options.items() if saved["options"].get(name) != value]
        chosen: dict[str, float] = {name: self._options[name] for name in ("weight", "radius") if name in changed}
        try:
            self.penalty.load_state_dict(saved["state"])
        except ValueError as error:
            warn_first_rank(f"The penalty's pairs start anew. {error}")
            return chosen
        self._gathered_state, self._moved_since_gather = None, self.penalty.settings.persistent
        for name, value in chosen.items():
            setattr(self.penalty, name, value)
        if changed:
            values = ", ".join(f"{name}={self._options[name]!r}" for name in changed)
            warn_first_rank(f"The penalty goes on with other options than the checkpoint's: {values}.")
        return chosen


def _class_of_both(*bases: type) -> Any:
    """Return the class of tasks of two classes, always the same: a penalty's, and timm's own."""
    own = {"__new__": plain_new, "__reduce_ex__": _reduced}
    return _CLASSES.get(bases) or _CLASSES.setdefault(bases, type(f"Lipschitz{bases[1].__name__}", bases, own))


def _reduced(task: Any, protocol: Any) -> tuple[Any, ...]:
    """Let pickle make the class anew, which no module holds."""
    return _empty, type(task).__bases__, task.__dict__


def _empty(cls: type, of_task: type) -> Any:
    made = _class_of_both(cls, of_task)
    return made.__new__(made)


def plain_new(cls: type, *args: Any, **kwargs: Any) -> Any:
    """Make an empty object: the ``__new__`` of classes that are a task and have a penalty, for copies and launchers."""
    return object.__new__(cls)


def _check_penalty(value: Any) -> LipschitzPenalty:
    penalty = check_instance("penalty", value, LipschitzPenalty)
    if penalty.settings.choose is not None and not _takes_the_tasks_output(penalty):
        raise ValueError(
            "Expected argument `penalty` to have no `choose` beside an `output` function of its own, for which the "
            "task's output is not made. Take torchlipreg.outputs.root_probabilities, or leave one of them out."
        )
    return penalty


def _takes_the_tasks_output(penalty: LipschitzPenalty) -> bool:
    """Say whether the penalty's ``output`` works on a tensor as on what the model returns."""
    return penalty.settings.output in (None, root_probabilities)


def _options(penalty: LipschitzPenalty) -> dict[str, Any]:
    """Return the penalty's arguments in plain values: functions by their names."""
    settings = {
        name: getattr(value, "__qualname__", type(value).__qualname__) if callable(value) else value
        for name, value in penalty.settings.arguments().items()
    }
    return {"weight": penalty.weight, **settings, "radius": penalty.radius}
