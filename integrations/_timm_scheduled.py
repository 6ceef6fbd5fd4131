"""A penalised task whose weight and radius follow schedules, for the launcher: a script steps nothing by itself."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from torchlipreg.integrations._timm_schedules import Schedules
from torchlipreg.integrations._timm_task import STATE_KEY, LipschitzTask


class ScheduledTask(LipschitzTask):  # type: ignore[misc]
    """A task that steps its ``schedules``: after each optimizer step, and as the next epoch begins."""

    schedules: Schedules

    def __call__(self, input: Tensor, target: Any) -> dict[str, Any]:
        """Return the task's result; schedules of epochs step before the first training step of the next one."""
        if self._is_training():
            self.schedules.before_training()
        result: dict[str, Any] = super().__call__(input, target)
        return result

    def update_ema(self, step: int | None = None) -> None:
        """Step what counts optimizer steps: a script calls this after each.

        Args:
            step: As for the task.
        """
        super().update_ema(step=step)
        self.schedules.after_update()

    def _after_validation(self, metrics: dict[str, Any]) -> None:
        self.schedules.after_validation(metrics)

    def get_task_state(self, module: nn.Module | None = None, ema: bool = False) -> dict[str, Any]:
        """Return the penalised task's state, and that of the schedules beside the penalty's.

        Args:
            module: As for the task.
            ema: As for the task.

        Returns:
            The state.
        """
        state: dict[str, Any] = super().get_task_state(module=module, ema=ema)
        if STATE_KEY in state:
            state[STATE_KEY]["schedules"] = self.schedules.state_dict()
        return state

    def _load_penalty(self, saved: dict[str, Any] | None) -> dict[str, float]:
        chosen: dict[str, float] = super()._load_penalty(saved)
        if saved is not None:
            self.schedules.load_state_dict(saved.get("schedules", {}), chosen)
        return chosen
