"""Run timm's train.py, unchanged, with a penalty."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import runpy
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import timm.task
import timm.utils
import torch
from timm.task import TrainingTask
from torch import Tensor

from torchlipreg import LipschitzPenalty
from torchlipreg.integrations._timm_data import DataConfig
from torchlipreg.integrations._timm_options import PROGRAM, parse
from torchlipreg.integrations._timm_scheduled import ScheduledTask
from torchlipreg.integrations._timm_schedules import Schedules
from torchlipreg.integrations._timm_task import LipschitzTask, plain_new


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a training script that builds timm tasks, each with a penalty.

    Args:
        arguments: The script, its arguments and ``--lip-*`` options, in any order; default ``sys.argv[1:]``.

    Raises:
        SystemExit: If an option is wrong, if the script exits, or if it never built a timm task.
    """
    line = parse(sys.argv[1:] if arguments is None else arguments)
    script, meter, data = line.script, Meter(), DataConfig()

    def equip(task: ScheduledTask) -> None:
        task._set_penalty(LipschitzPenalty(**{**data.options(line.penalty), **line.penalty}))
        task.schedules = Schedules(task.penalty, line.schedules)  # last: a warm-up changes the weight that was asked
        data.when_an_epoch_begins.append(task.schedules.before_epoch)

    with tasks_replaced(equip, meter), reported(meter), data.heard(), _as_main(script, line.arguments):
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as stop:
            if stop.code is not None:  # --help for one; None is what sys.exit(main()) gives in the end
                raise
    if not meter.tasks:
        raise SystemExit(
            f"{PROGRAM}: {script} never built a timm task, so it trained without a penalty. The script has to train "
            "through `timm.task` (timm >= 1.0.31), as that version's train.py does."
        )
    if not meter.calls and any(task.penalty.weight > 0 for task in meter.tasks):
        warnings.warn(f"{script} built a timm task but trained no step through it.", stacklevel=2)


Equip = Callable[[ScheduledTask], None]


class Meter:
    """What the launcher knows of the run: the tasks, and the penalty and estimate since the last summary."""

    def __init__(self) -> None:
        self.tasks: list[LipschitzTask] = []
        self.calls = 0
        self._reset()

    def _reset(self) -> None:
        self._count, self._sum, self._largest = 0, torch.zeros(()), torch.zeros(())

    def update(self, task: LipschitzTask, penalty: Tensor, lipschitz: Tensor) -> None:
        """Note a training step. Reads no value, so that it need not wait for a GPU."""
        self._task, self._last = task, penalty
        self._sum = self._sum.to(penalty.device) + penalty
        self._largest = torch.maximum(self._largest.to(lipschitz.device), lipschitz)
        self._count += 1
        self.calls += 1

    def line(self) -> str:
        """Return the last penalty, its mean, the last Lipschitz estimate and share; empty without a step."""
        if not self._count:
            return ""
        mean = float(self._sum) / self._count
        estimate = float(self._task.penalty.estimate)
        self._task.penalty.warn_of_data()
        share = self._task.penalty.share
        shown = "" if share is None else f"  Share: {share:.1e}"
        return f"  Penalty: {float(self._last):#.3g} ({mean:#.3g})  Lipschitz: {estimate:#.3g}{shown}"

    def summary(self) -> str:
        """Return the mean penalty and the largest estimate since the last time of asking; empty without a step."""
        if not self._count:
            return ""
        text = f"Mean: {float(self._sum) / self._count:#.3g}  Largest Lipschitz estimate: {float(self._largest):#.3g}"
        self._reset()
        return text


@contextlib.contextmanager
def tasks_replaced(equip: Equip, meter: Meter) -> Iterator[None]:
    """Put penalised classes in the place of timm's task classes, for whoever imports them inside the context."""
    classes = penalised_classes(equip, meter)
    modules = [module for name, module in sys.modules.items() if name == "timm.task" or name.startswith("timm.task.")]
    names = [(m, name, kind) for m in modules for name, kind in vars(m).items() if _is_task_class(kind)]
    for module, name, kind in names:
        setattr(module, name, classes.get(kind, kind))
    try:
        yield
    finally:
        for module, name, kind in names:
            setattr(module, name, kind)


def penalised_classes(equip: Equip, meter: Meter) -> dict[type, type]:
    """Subclass each of timm's task classes: constructed like it, with a penalty.

    Args:
        equip: Gives a task its penalty and schedules.
        meter: Told of each task and of its training steps.

    Returns:
        The subclass of each. They inherit from each other as the originals do, so that a script's isinstance checks
        and its own subclasses hold.
    """

    class Launched(ScheduledTask):  # type: ignore[misc]
        def __call__(self, input: Tensor, target: Any) -> dict[str, Any]:
            result: dict[str, Any] = super().__call__(input, target)
            if self._applies():
                meter.update(self, result["penalty"], result["lipschitz"])
            return result

    def constructor(kind: type) -> Callable[..., None]:
        @functools.wraps(kind.__init__)  # type: ignore[misc]
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
            kind.__init__(self, *args, **kwargs)  # type: ignore[misc]
            equip(self)
            meter.tasks.append(self)

        return __init__

    classes: dict[type, type] = {}
    kinds = [kind for kind in vars(timm.task).values() if _is_task_class(kind)]
    for kind in sorted(kinds, key=lambda kind: len(kind.__mro__)):
        parent = next((classes[base] for base in kind.__mro__ if base in classes), Launched)
        namespace = {
            "__new__": plain_new,
            "__init__": constructor(kind),
            "__module__": kind.__module__,
            "__doc__": kind.__doc__,
        }
        classes[kind] = type(kind.__name__, (parent, kind), namespace)
    return classes


def _is_task_class(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, TrainingTask)


@contextlib.contextmanager
def reported(meter: Meter) -> Iterator[None]:
    """Append the penalty and the Lipschitz estimate to what train.py logs, and log a line when it sums up an epoch.

    train.py does both on rank 0 alone, so each number appears once. Its summary.csv stays as it is: with further
    columns, a plain run that is resumed into it would write its numbers under the wrong heads.
    """
    logger, utils = logging.getLogger("train"), cast(Any, timm.utils)
    update_summary = utils.update_summary

    def append(record: logging.LogRecord) -> bool:
        if record.getMessage().startswith("Train:"):
            record.msg, record.args = record.getMessage() + meter.line(), ()
        return True

    @functools.wraps(update_summary)
    def update_and_log(epoch: int, *args: Any, **kwargs: Any) -> Any:
        summary = meter.summary()
        if summary:
            logger.info(f"Penalty: {epoch}  {summary}")
        return update_summary(epoch, *args, **kwargs)

    logger.addFilter(append)
    utils.update_summary = update_and_log
    try:
        yield
    finally:
        logger.removeFilter(append)
        utils.update_summary = update_summary


@contextlib.contextmanager
def _as_main(script: str, arguments: list[str]) -> Iterator[None]:
    """Set ``sys.argv``, and ``sys.path`` for the script's neighbours, as ``python script`` would."""
    argv, first = sys.argv, sys.path[0]
    sys.argv, sys.path[0] = [script, *arguments], os.path.dirname(os.path.abspath(script))
    try:
        yield
    finally:
        sys.argv, sys.path[0] = argv, first
