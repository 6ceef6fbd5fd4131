"""Hugging Face transformers: a Trainer with one more argument, the penalty. Long: it documents what it overrides."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from torchlipreg import LipschitzPenalty
from torchlipreg.checks import check_instance
from torchlipreg.integrations._calls import Call, recorded, tables_of
from torchlipreg.integrations._stepped import Stepped
from torchlipreg.integrations._trainer_input import check_shape, penalised, plain_model, without_loss
from torchlipreg.integrations._trainer_schedules import Stepping, find_accuracy, load_schedules
from torchlipreg.integrations.accelerate import FILE, load_penalty, log_values, save_penalty
from torchlipreg.model.parts.parallelism import check_parallelism, check_unused_parameters
from torchlipreg.notice import warn_user
from torchlipreg.outputs import is_own

NAME = FILE.format(0)
SCHEDULES = "lipschitz_schedules.bin"

logger = logging.getLogger(__name__)


class LipschitzTrainerMixin:
    """Makes a subclass of ``transformers.Trainer`` penalise its model: ``class My(LipschitzTrainerMixin, My0)``.

    In training, ``compute_loss`` adds the penalty to the loss, averaged over the batches of an optimizer step however
    Trainer scales the loss (by the number of batches, or of items in them). Evaluation and prediction add nothing and
    move nothing. At Trainer's own logging steps ``penalty`` (its mean since the last, part of ``loss``), ``lipschitz``
    (the largest quotient, a lower bound), ``penalty_share`` and the weight are logged with the loss.

    Checkpoints hold the penalty, with the pairs of all processes, beside the optimizer's state (so not with
    ``save_only_model``); resuming restores it, in any number of processes. The weights are Trainer's business:
    transformers 5.24 resumes its own ViT without most of them, and only logs "missing keys".

    Penalised is what the model was called with: ``pixel_values``, ``input_features``, ``input_values`` or
    ``inputs_embeds``, or else the only floating tensor. For ``input_ids`` it is what the model looks up for them, so
    that radius and norms are those of the model's embedding space; the ids stay, as a model may read them elsewhere.
    The mask and whatever else the model takes, but labels, are the penalty's ``model_kwargs``. Embeddings and outputs
    of padding count like others: pad little.

    Trainer 5.24 itself adds up, where it should average, the task's loss of accumulated batches for models that take
    ``**kwargs`` and do not divide by ``num_items_in_batch``, such as transformers' sequence classifiers: the penalty
    then weighs less beside it. Setting ``model.accepts_loss_kwargs = False`` before makes both a mean.

    Args:
        *args: The Trainer's.
        penalty: Its state is the Trainer's from now on.
        penalty_input: Name of the tensor to penalise in a batch, where it cannot be guessed.
        schedules: Schedules of the penalty, saved and restored with it. A ``WeightWarmup`` is stepped with the
            optimizer, a ``DiscrepancyWeight`` after each evaluation in training, every other after each epoch.
        accuracy: The evaluation metric, in [0, 1], that a ``DiscrepancyWeight`` is stepped with, say
            ``"eval_accuracy"``: what ``compute_metrics`` calls it, with or without ``eval_``.
        **kwargs: The Trainer's.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If the Trainer trains with DeepSpeed, there is a ``DiscrepancyWeight`` without ``accuracy`` or
            without evaluations in training, or a schedule of another penalty; in the first step, if no tensor can be
            penalised; if no evaluation gives the accuracy.
    """

    penalty: LipschitzPenalty

    def __init__(
        self,
        *args: Any,
        penalty: LipschitzPenalty,
        penalty_input: str | None = None,
        schedules: Iterable[Any] = (),
        accuracy: str | None = None,
        **kwargs: Any,
    ) -> None:
        check_instance("penalty", penalty, LipschitzPenalty)
        if not isinstance(penalty_input, (str, type(None))):
            raise TypeError(f"Expected argument `penalty_input` to be a name, but got {type(penalty_input).__name__}.")
        stepped = Stepped(schedules, penalty, accuracy)
        super().__init__(*args, **kwargs)
        if self.is_deepspeed_enabled:  # type: ignore[attr-defined]
            raise ValueError(
                "Expected argument `args` to train without DeepSpeed, whose engine fails with several forwards in one "
                "backward (ZeRO-3, microsoft/DeepSpeed issue 5321) or reduces gradients in ways that were not tried. "
                "Use FSDP2: `fsdp_config={'fsdp_version': 2}`."
            )
        if stepped.follows_accuracy and self.args.eval_strategy == "no":  # type: ignore[attr-defined]
            raise ValueError(
                "Expected argument `args` to evaluate during training, by `eval_strategy`, because a DiscrepancyWeight "
                "is stepped with the accuracy of evaluations."
            )
        self.penalty, self.penalty_input, self._stepped, self.accuracy = penalty, penalty_input, stepped, accuracy
        self._at_first = copy.deepcopy({"penalty": penalty.state_dict(), "schedules": stepped.state_dict()})
        if stepped.schedules:
            self.add_callback(Stepping(stepped))  # type: ignore[attr-defined]
        self._weight_left = penalty.weight
        self._terms = _Mean()
        self._used: dict[str, float | None] = {}  # in the last step
        self._in_step = self._asked = self._looked = False

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, as the Trainer does; a model that ``model_init`` makes anew gets a penalty that starts anew.

        Args:
            *args: The Trainer's.
            **kwargs: The Trainer's.

        Returns:
            What the Trainer returns.
        """
        self._terms = _Mean()
        if self.model_init is not None:  # type: ignore[attr-defined]
            self._start_anew()
        result = super().train(*args, **kwargs)  # type: ignore[misc]
        self._weight_left = self.penalty.weight
        return result

    def _start_anew(self) -> None:
        """Forget the pairs of another model, say of another trial, and what schedules did; keep what a user set."""
        penalty, stepped = self.penalty, self._stepped
        weight, radius = penalty.weight, penalty.radius
        penalty.load_state_dict(self._at_first["penalty"])
        penalty.weight, penalty.radius = weight, radius
        stepped.load_state_dict(self._at_first["schedules"])
        if weight not in (self._weight_left, penalty.weight):
            warn_user(
                f"The penalty's weight was set to {weight:g}, but its schedules start again from {penalty.weight:g}. "
                "For another weight make penalty, schedules and Trainer anew."
            )

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Take a training step, as the Trainer does, and see that the penalty was in its loss.

        Args:
            *args: The Trainer's.
            **kwargs: The Trainer's.

        Returns:
            The loss as the Trainer scales it, penalty included.

        Raises:
            RuntimeError: If the loss was computed without ``compute_loss`` of this class.
        """
        self._in_step, self._asked = True, False
        try:
            loss: Tensor = super().training_step(*args, **kwargs)  # type: ignore[misc]
        finally:
            self._in_step = False
        if not self._asked:
            raise RuntimeError(
                f"The loss holds no penalty: `compute_loss` of {type(self).__name__} has to call super().compute_loss, "
                "which adds it. Do so, or pass the loss as `compute_loss_func`, or put LipschitzTrainerMixin first "
                "among the base classes."
            )
        return loss

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, *args: Any, **kwargs: Any
    ) -> Any:
        """Compute the loss, as the Trainer does, with the penalty in training.

        Args:
            model: As the Trainer calls it.
            inputs: The batch.
            return_outputs: Whether to return the model's outputs as well.
            *args: ``num_items_in_batch``.
            **kwargs: The same by name.

        Returns:
            The loss, or the loss and the outputs, which are the model's for the task.
        """
        if not (torch.is_grad_enabled() and (self._in_step or plain_model(model).training)):
            return super().compute_loss(model, inputs, return_outputs, *args, **kwargs)  # type: ignore[misc]
        self._asked = True
        with recorded(model, plain_model(model)) as calls:
            returned = super().compute_loss(model, inputs, True, *args, **kwargs)  # type: ignore[misc]
        # A user's own compute_loss may not know `return_outputs`, as Trainer's training never asks for them.
        loss, outputs = (returned, calls[-1].returned if calls else None) if isinstance(returned, Tensor) else returned
        term = self._penalty_at(model, inputs, calls, outputs)
        batches = getattr(self, "current_gradient_accumulation_steps", 1)
        self._terms.add(term.detach(), 1 / batches)
        self._used = {"lipschitz_weight": self.penalty.weight, "lipschitz_radius": self.penalty.radius}
        if term.requires_grad:
            items = args[0] if args else kwargs.get("num_items_in_batch")
            loss = loss + (term / batches if self._is_scaled(items) else term)
        return (loss, outputs) if return_outputs else loss

    def _is_scaled(self, items: Any) -> bool:
        """Say whether a loss is that of all batches of a step already, as ``Trainer.training_step`` decides it."""
        said = getattr(self, "loss_is_scaled_for_ga", None) if hasattr(Trainer, "loss_is_scaled_for_ga") else None
        if said is not None:
            return bool(said)
        of_items = self.model_accepts_loss_kwargs and items is not None  # type: ignore[attr-defined]
        return bool(of_items) or self.compute_loss_func is not None  # type: ignore[attr-defined]

    def _penalty_at(self, model: nn.Module, inputs: dict[str, Any], calls: list[Call], outputs: Any) -> Tensor:
        if self.penalty.weight == 0:
            return torch.zeros(())
        check_parallelism(model)
        settings = self.penalty.settings
        # Of several calls that which returned the outputs; else the last, with its own.
        call = next((c for c in calls if c.returned is outputs), calls[-1] if calls else None)
        call = call or Call(inputs, tables_of(plain_model(model)), outputs)
        call.kwargs, lent = call.kwargs or inputs, call.returned
        labels, eager = self.label_names, self.penalty.radius == 0  # type: ignore[attr-defined]
        name, f, x, model_kwargs = penalised(model, call, self.penalty_input, labels, eager=eager)
        check_shape(self.penalty, x)
        # A tuple that begins with the loss has without labels one element less, or None in its place: who knows.
        unclear = isinstance(lent, tuple) and not is_own(settings.output) and settings.choose is None
        term = self.penalty(f, x, None if unclear else without_loss(lent), model_kwargs=model_kwargs)
        if not self._looked:  # the penalty itself, which sees a callable around the model, cannot
            check_unused_parameters(model, outputs, term)
            self._looked = True
            of_ids = " of token ids: radius and norms are those of embeddings" if name not in inputs else ""
            logger.info("The penalty moves %s%s.", name, of_ids)
        return term

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log values, as the Trainer does; the penalty's with the training loss.

        Args:
            logs: The values.
            *args: The Trainer's.
            **kwargs: The Trainer's.
        """
        if "loss" in logs and self._terms.count:
            values = log_values(self.penalty, self._terms.take())  # weight and radius: after the schedules' step
            logs = {**logs, **values, **{name: value for name, value in self._used.items() if value is not None}}
        super().log(logs, *args, **kwargs)  # type: ignore[misc]

    def _evaluate(self, trial: Any, ignore_keys_for_eval: Any, skip_scheduler: bool = False) -> dict[str, float]:
        metrics: dict[str, float] = super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler)  # type: ignore[misc]
        if self._stepped.follows_accuracy and not skip_scheduler:
            self._stepped.after_accuracy(find_accuracy(metrics, self.accuracy or ""))
        return metrics

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)  # type: ignore[misc]
        save_penalty(self.penalty, Path(output_dir, NAME), writes=self.args.should_save)  # type: ignore[attr-defined]
        if self._stepped.schedules and self.args.should_save:  # type: ignore[attr-defined]
            torch.save(self._stepped.state_dict(), Path(output_dir, SCHEDULES))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
        if checkpoint is None:
            return
        anew = [schedule.state_dict() for schedule in self._stepped.schedules]
        load_penalty(self.penalty, Path(checkpoint, NAME))
        if anew:
            load_schedules(self._stepped, Path(checkpoint, SCHEDULES), anew)


class LipschitzTrainer(LipschitzTrainerMixin, Trainer):
    """A ``transformers.Trainer`` with one more argument, the penalty.

    ::

        trainer = LipschitzTrainer(model=model, args=args, train_dataset=data, penalty=LipschitzPenalty("tv"))
        trainer.train()

    With schedules of the penalty::

        penalty = LipschitzPenalty("tv", weight=0.05)
        schedules = [RadiusDecay(penalty, 0.9), DiscrepancyWeight(penalty, target=0.9, increment=0.01)]
        trainer = LipschitzTrainer(model=model, args=args, train_dataset=data, eval_dataset=test, penalty=penalty,
                                   compute_metrics=metrics, schedules=schedules, accuracy="eval_accuracy")

    See :class:`LipschitzTrainerMixin` for what it does and its arguments.
    """


class _Mean:
    """The mean penalty of the optimizer steps since the last logging."""

    def __init__(self) -> None:
        self.total: Tensor | float = 0.0
        self.count = 0.0

    def add(self, term: Tensor, share: float) -> None:
        """Add the penalty of a batch, which is that share of an optimizer step."""
        self.total, self.count = self.total + share * term, self.count + share

    def take(self) -> Tensor:
        """Return the mean and start anew."""
        mean, self.total, self.count = torch.as_tensor(self.total / self.count), 0.0, 0.0
        return mean
