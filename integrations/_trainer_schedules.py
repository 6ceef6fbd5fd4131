"""Schedules of a penalty under transformers' Trainer: when they are stepped, and how they resume."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_utils import has_length

from torchlipreg.integrations._stepped import Stepped
from torchlipreg.notice import warn_user


class Stepping(TrainerCallback):
    """Steps schedules where the Trainer says that a step or an epoch ended."""

    def __init__(self, stepped: Stepped) -> None:
        self.stepped = stepped
        self._steps = 0  # of the optimizer, in this pass over the data

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take in where a resumed training is."""
        self.stepped.begin(math.floor(state.epoch or 0))

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Make up for the end of an epoch that never came."""
        self._steps = 0
        # Saved after an epoch's last step, a checkpoint is resumed in the next: the end of its epoch never comes.
        made_up = self.stepped.after_epochs(math.floor(state.epoch or 0))
        if made_up and self.stepped.follows_accuracy and args.eval_strategy == "epoch":
            warn_user(
                "The Trainer does not evaluate the epoch at whose last step this checkpoint was saved: the "
                'DiscrepancyWeight goes on without its accuracy. Save by `save_strategy="epoch"`, or evaluate by '
                '`eval_strategy="steps"`, as often as you save.',
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Step what follows the optimizer."""
        self._steps += 1
        self.stepped.after_update()

    def on_epoch_end(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **kwargs: Any) -> None:
        """Step what follows epochs."""
        if control.should_training_stop and state.epoch % 1:  # stopped in its midst, it may go on when resumed
            return
        if has_length(train_dataloader):
            self.stepped.after_epochs(math.ceil(state.epoch))
        elif self._steps:
            self.stepped.after_epochs((self.stepped.epochs or 0) + 1)
        elif self.stepped.follows_epochs and args.save_strategy != "epoch":  # Trainer counts passes from 0 when resumed
            warn_user(
                "The Trainer begins a data set without a length anew when it resumes: schedules of epochs do not count "
                'the pass that the checkpoint was saved in, be it at its last step. Save by `save_strategy="epoch"`.'
            )


def find_accuracy(metrics: dict[str, float], name: str) -> float:
    """Return an evaluation's accuracy, by its name with or without ``eval_``; ValueError where there is none."""
    full = name if name.startswith("eval_") else f"eval_{name}"
    if full not in metrics:
        raise ValueError(
            f"Expected argument `accuracy` to name a metric of evaluations, but got {name!r}, and there are "
            f"{', '.join(metrics)}. Return it from `compute_metrics`."
        )
    return metrics[full]


def load_schedules(stepped: Stepped, path: Path, anew: list[dict[str, Any]]) -> None:
    """Restore schedules from a checkpoint's file; warn where there is none.

    Args:
        stepped: The schedules.
        path: Of the file.
        anew: Their states from before the penalty's was loaded, with which they start where there is no file.
    """
    if path.exists():
        stepped.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        return
    for schedule, state in zip(stepped.schedules, anew, strict=True):
        schedule.load_state_dict(state)
    warn_user(f"There are no schedules in {path.parent}: they start anew, with weight and radius as constructed.")
