"""Lightning: LipschitzCallback carries a penalty in checkpoints and logs it; Fabric needs no more than the line.

With ``Fabric`` the penalty takes what ``fabric.setup`` returned, and goes into the state that is saved::

    loss = criterion(out, y) + penalty(model, x, out)
    fabric.backward(loss)
    ...
    penalty.synchronize()  # on every process: the pairs of all of them
    fabric.save(path, {"model": model, "optimizer": optimizer, "penalty": penalty})

Hand ``model`` itself to the penalty, not a lambda that calls it: Fabric refuses gradients inside of its wrapper.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch

from torchlipreg import LipschitzPenalty
from torchlipreg.checks import check_instance
from torchlipreg.integrations._lightning_packages import callback_base
from torchlipreg.integrations._stepped import Stepped
from torchlipreg.notice import warn_user

if TYPE_CHECKING:
    from lightning.pytorch import Callback as _Callback
else:
    _Callback = callback_base()


class LipschitzCallback(_Callback):
    """Saves and loads a penalty with Lightning's checkpoints, logs it, and steps its schedules.

    The term itself is one line in ``training_step``, with the module as the model::

        class Classifier(L.LightningModule):
            def __init__(self, penalty):
                super().__init__()
                self.penalty = penalty

            def training_step(self, batch, batch_idx):
                x, y = batch
                out = self(x)
                return cross_entropy(out, y) + self.penalty(self, x, out)

        penalty = LipschitzPenalty("tv", weight=0.05)
        trainer = L.Trainer(callbacks=[LipschitzCallback(penalty)])
        trainer.fit(Classifier(penalty), loader)

    With ``save_hyperparameters`` leave the penalty out (``ignore=["penalty"]``): the callback saves it.

    Manual optimisation, ``accumulate_grad_batches``, ``precision`` and DDP need nothing more: the penalty computes in
    float32 (or the module's own dtype) whatever autocast does, and its gradient is averaged with the loss's. In a step
    that validation shares, the penalty only returns a value: nothing moves where there are no gradients, and it is
    that of the last training step's pairs, no number of the validation data.

    Checkpoints hold the pairs of all processes, and load into any number of them. So :meth:`state_dict` is collective,
    as ``trainer.save_checkpoint`` is.

    It logs, at the trainer's own logging steps: ``penalty`` (with ``interval``, that of a step in the mean),
    ``lipschitz`` (the largest quotient, a lower bound), ``lipschitz_weight``, ``lipschitz_radius`` and
    ``penalty_share`` (of this process), where they exist. It warns after an epoch in which
    ``training_step`` never added the penalty to its loss.

    It is a ``Callback`` of ``lightning`` and of ``pytorch_lightning``, of those that are imported before this module;
    of one that is imported later it is none by ``isinstance``, which 2.6 does not mind and 2.5 refuses.

    Args:
        penalty: The one that ``training_step`` calls.
        schedules: Schedules of the penalty, whose state is saved too. A ``WeightWarmup`` is stepped with the optimizer,
            every other after each epoch, by its ``step()``; a ``DiscrepancyWeight`` by ``step`` of the latest accuracy.
        accuracy: The metric, in [0, 1], that a ``DiscrepancyWeight`` is stepped with, by the name under which the
            module logs it, say ``"val_accuracy"``. On several processes log it with ``sync_dist=True``.
        prefix: Before the names of logged values, and of this callback's state: one of its own for each penalty.
        prog_bar: Show ``penalty`` and ``lipschitz`` in the progress bar, which waits for the GPU.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If there is a ``DiscrepancyWeight`` without ``accuracy``, or a schedule of another penalty.
    """

    def __init__(
        self,
        penalty: LipschitzPenalty,
        *,
        schedules: Iterable[Any] = (),
        accuracy: str | None = None,
        prefix: str = "",
        prog_bar: bool = False,
    ) -> None:
        check_instance("penalty", penalty, LipschitzPenalty)
        if not isinstance(prefix, str):
            raise TypeError(f"Expected argument `prefix` to be a string, but got {type(prefix).__name__}.")
        self.penalty, self.prefix, self.prog_bar = penalty, prefix, prog_bar
        self._stepped, self.accuracy = Stepped(schedules, penalty, accuracy), accuracy
        self._steps = 0  # of the optimizers, as the trainer counts them
        self._last_accuracy: float | None = None
        self._accuracy_epoch: int | None = None  # in which it was measured
        self._trained = self._warned = False

    @property
    def schedules(self) -> list[Any]:
        """The schedules that this callback steps."""
        schedules: list[Any] = self._stepped.schedules
        return schedules

    @property
    def state_key(self) -> str:
        """The name of this callback's state in a checkpoint: the same for both of Lightning's packages."""
        return f"LipschitzCallback{self.prefix and repr(self.prefix)}"

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the penalty, with the pairs of all processes, and of the schedules. Collective."""
        self.penalty.synchronize()
        stepped = self._stepped.state_dict()
        accuracy = {"accuracy": self._last_accuracy, "accuracy_epoch": self._accuracy_epoch}
        return {"penalty": self.penalty.state_dict(), **stepped, **accuracy}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state.

        Args:
            state_dict: From :meth:`state_dict`, of any number of processes.

        Raises:
            ValueError: If it was saved with other schedules, or another kind of penalty.
        """
        self._stepped.check_state(state_dict)
        self.penalty.load_state_dict(state_dict["penalty"])
        self._stepped.load_state_dict(state_dict)
        self._last_accuracy, self._accuracy_epoch = state_dict["accuracy"], state_dict["accuracy_epoch"]

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Warn of a checkpoint without the penalty."""
        is_missing = self.state_key not in checkpoint["callbacks"]
        if is_missing and trainer.state.fn == "fit" and trainer.is_global_zero:
            warn_user("There is no penalty in the checkpoint: its pairs start anew.")

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Go on counting epochs and steps where the trainer does."""
        self._stepped.begin(trainer.current_epoch)
        self._steps, self._trained = trainer.global_step, False  # resumed, an epoch may end without a batch

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Step the schedules for an epoch whose end Lightning skips: resumed from a checkpoint after its last batch."""
        made_up = self._stepped.after_epochs(trainer.current_epoch, self._last_accuracy)
        every = trainer.check_val_every_n_epoch
        is_due = every is not None and trainer.current_epoch % every == 0
        is_old = is_due and self._accuracy_epoch != trainer.current_epoch - 1
        if made_up and is_old and self._stepped.follows_accuracy and trainer.is_global_zero:
            latest = "without one" if self._last_accuracy is None else f"with the last one, {self._last_accuracy:.3g}"
            warn_user(
                "This checkpoint was saved at the last step of an epoch, whose end, and with it the accuracy, "
                f"Lightning leaves out: the DiscrepancyWeight goes on {latest}. Save after it "
                "(`save_on_train_epoch_end=True`).",
            )

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log, and step what follows the optimizer."""
        self._trained = True
        self._log(pl_module)
        if trainer.global_step > self._steps:
            self._steps = trainer.global_step
            self._stepped.after_update()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Note the accuracy, before Lightning saves the checkpoint of this validation."""
        if not trainer.sanity_checking:
            self._note_accuracy(trainer)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Warn if something is amiss, and step what follows epochs."""
        self.penalty.warn_of_data()
        self._warn_if_unused(trainer)
        self._note_accuracy(trainer)
        self._stepped.after_epochs(trainer.current_epoch + 1, self._last_accuracy)

    def _log(self, module: Any) -> None:
        penalty = self.penalty
        if penalty.value is None:
            return
        added = penalty.value / penalty.settings.interval if penalty.weight else torch.zeros_like(penalty.value)
        shown = {"penalty": added, "lipschitz": penalty.estimate}
        weight, radius, share = penalty.weight, penalty.radius, penalty.share
        others = {"lipschitz_weight": weight, "lipschitz_radius": radius, "penalty_share": share}
        for values, on_bar in ((shown, self.prog_bar), (others, False)):
            named = {f"{self.prefix}{name}": value for name, value in values.items() if value is not None}
            module.log_dict(named, prog_bar=on_bar, on_step=True, on_epoch=False)

    def _note_accuracy(self, trainer: Any) -> None:
        """Read the metric; a validation that comes only every few epochs is waited for."""
        metrics = trainer.callback_metrics
        if self.accuracy in metrics:
            self._last_accuracy, self._accuracy_epoch = float(metrics[self.accuracy]), trainer.current_epoch
        elif self.accuracy is not None and (trainer.validating or not trainer.enable_validation):
            raise ValueError(
                f"Expected argument `accuracy` to name a metric that the module logs, but got {self.accuracy!r}, and "
                f"it logs {', '.join(metrics) or 'none'}. Log it in validation_step, or with on_epoch=True."
            )

    def _warn_if_unused(self, trainer: Any) -> None:
        penalty = self.penalty
        if penalty.was_added or penalty.weight == 0 or self._warned or not self._trained:
            return
        self._warned = True
        if trainer.is_global_zero:
            found = "was never called" if penalty.value is None else "was called, but no backward came through it"
            warn_user(
                f"The penalty of LipschitzCallback {found} in an epoch of training. In `training_step`, return "
                "`loss + penalty(self, x, out)`, with the same penalty.",
            )
