"""Watch: the size of the penalty's gradient beside the task's, looked at now and then, never waiting for the device."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchlipreg.geometry.norms import as_rows
from torchlipreg.model.internals.graph import nearest_weights
from torchlipreg.model.internals.hooks import set_aside
from torchlipreg.model.internals.to_host import Later

LOOKS = 50  # that agree before a warning
SETBACK = 5  # that one which disagrees takes back: it may be noise of a small batch
EARLY, LATE = 8, 64  # calls from look to look: at first, and afterwards
INERT = 1e-4  # a share under which the penalty does nothing
BALANCE = 0.2  # a share with which the penalty holds back the task
STRETCH = 2.0  # what the task still asks for where outputs are half of what it wants
WEIGHTS = 2  # the matrices nearest to the output stand for all parameters
ROWS = 32  # pairs stand for all
ROUNDED = 1 / 16  # of a movement: if rounding the outputs alone makes up so much, rounding inside makes up all
NO_TASK = 1e5  # a share beyond is rounding: there was no task in that backward


class Watch:
    """The share ‖∇ penalty‖ / ‖∇ task loss‖ of a run.

    A stand-in for that of all parameters: of the two weight matrices nearest to the output, at 32 pairs. A look builds
    a graph of its own, which costs a forward of those pairs and the end of a backward, and takes the penalty's
    gradient there; the sum with the task's is read by hooks in the training loop's own backward. It looks in every 8th
    call at first, and from the 400th on in every 64th, unless looks agree that something is wrong. On several
    processes the gradients are those of this process, before they are averaged.

    A penalty is *inert* if the share stays under 1e-4. It is *ruinous* if the share is over 0.2 and the task still
    pulls the outputs apart: |⟨∇W, W⟩| / Var(outputs) > 2, where W is the last weight matrix and ∇ the gradient of the
    task's loss. For a squared error whose outputs are k times the right ones this is 2 (1/k − 1): 2 means half the
    right size; for the cross-entropy of nearly equal logits it is one over their distance. That is for a loss averaged
    over the rows: one that is added up over them, or has another factor, is judged by that. The share alone cannot
    tell: where a training comes to rest the two gradients cancel, and it is about 1 whatever the weight. It is
    *rounded* if it measures what the machine rounds of large outputs: see :func:`torchlipreg.call.looks.rounding`.

    Attributes:
        share: The last that is known; None before the first.
    """

    def __init__(self) -> None:
        self.share: float | None = None
        self._calls = 0
        self._agreeing = dict.fromkeys(("rounded", "inert", "ruinous"), 0)
        self._taken: _Taken | None = None
        self._followed: _Look | None = None
        self._later = Later()

    def due(self) -> bool:
        """Count a call, and say whether to look in it: often at first, and while looks agree on something bad."""
        self._calls += 1
        often = self._calls <= EARLY * LOOKS or 0 < max(self._agreeing.values()) < LOOKS
        return self._calls % (EARLY if often else LATE) == 0

    def look(self, value: Tensor, fx: Tensor, rounding: Tensor) -> None:
        """Take the penalty's gradient.

        Args:
            value: reduceᵢ qᵢ^exponent at some pairs, 0-dim, with a graph that was built for the look.
            fx: Outputs at their data points, shape (N, *).
            rounding: How much of what outputs move may be rounding, 0-dim.
        """
        self.collect()
        weights = nearest_weights(value, WEIGHTS)
        if not weights:
            return
        # retain_graph: statistics of BatchNorm that follow the batch share their graph with the training's.
        with set_aside(weights):
            gradients = torch.autograd.grad(value, weights, retain_graph=True, allow_unused=True)
        known = {w: _real(g) for w, g in zip(weights, gradients, strict=True) if g is not None}
        if known:
            self._taken = _Taken([*known], [*known.values()], _variance_of(_real(fx)), rounding)

    def follow(self, penalty: Tensor, factor: float, interval: int, *, again: bool = False) -> None:
        """Read the sum with the task's gradient in the backward that the penalty takes part in, if this call looked.

        Args:
            penalty: What the training loop gets, 0-dim.
            factor: What makes a value the penalty: the weight and the scale.
            interval: How many calls' worth of it the loop gets.
            again: At the last call's pairs, as in a closure: that call's own value may meet no backward.
        """
        taken, self._taken = self._taken, None
        if again and penalty.requires_grad and self._followed is not None:
            self._followed.follow(penalty)
        if taken is not None and penalty.requires_grad:
            if self._followed is not None:
                self._followed.unhook()  # if there was no backward
            self._followed = _Look(taken, penalty, factor, interval, self._note)

    def collect(self) -> None:
        """Take in the last look's share, if the device has it ready."""
        found = self._later.take()
        if found is None:
            return
        share, stretch, rounding = found
        if not share < NO_TASK:  # a backward of the penalty alone, one without it, or a step that overflowed
            return
        self.share = share
        found_now = {
            "rounded": rounding > ROUNDED,
            "inert": share < INERT,
            "ruinous": share > BALANCE and stretch > STRETCH,
        }
        for verdict, agrees in found_now.items():
            looks = self._agreeing[verdict] + 1 if agrees else self._agreeing[verdict] - SETBACK
            self._agreeing[verdict] = max(0, looks)

    def start_anew(self) -> None:
        """Forget what looks agreed on: a state was loaded, perhaps with another weight."""
        self._agreeing = dict.fromkeys(self._agreeing, 0)

    def verdict(self) -> str | None:
        """Return "rounded", "inert" or "ruinous" if 50 looks agree on it."""
        return next((verdict for verdict, looks in self._agreeing.items() if looks >= LOOKS), None)

    def _note(self, found: Tensor) -> None:
        self._followed = None
        self._later.send(found)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_taken": None, "_followed": None}  # their hooks are on another model


class _Taken(NamedTuple):
    """The penalty's gradient at some weights, nearest to the output first, and what to compare it with."""

    weights: list[Tensor]
    gradients: list[Tensor]
    variance: Tensor
    rounding: Tensor


class _Look:
    """One look: the penalty's gradient is known, the sum with the task's comes with the loop's backward."""

    def __init__(
        self, taken: _Taken, penalty: Tensor, factor: float, interval: int, note: Callable[[Tensor], None]
    ) -> None:
        self.weights, self.gradients, self.variance, self.rounding = taken
        self.factor, self.interval, self.note = factor, interval, note
        self.task: dict[int, Tensor] = {}
        self.done: set[int] = set()
        self.loss_scale: Tensor | None = None  # ∂ loss / ∂ penalty: loss scaling and accumulation are in it
        self.handles: list[Any] = []
        self.follow(penalty)
        for i, weight in enumerate(self.weights):
            self.handles.append(_hooked(weight.register_hook, partial(self._note_sum, i)))
            # Not called by autograd.grad, with which gradients are looked at beside the training.
            self.handles.append(_hooked(weight.register_post_accumulate_grad_hook, partial(self._finish, i)))

    def follow(self, penalty: Tensor) -> None:
        self.handles.append(_hooked(penalty.register_hook, self._note_scale))

    def _note_scale(self, gradient: Tensor) -> None:
        self.loss_scale = self.factor * gradient.detach()

    def _note_sum(self, i: int, total: Tensor) -> None:
        if self.loss_scale is not None:  # else a backward without the penalty
            self.task[i] = _real(total) / self.loss_scale - self.interval * self.gradients[i]  # before it is squared

    def _finish(self, i: int, weight: Tensor) -> None:
        self.done.add(i)
        if self.loss_scale is not None and len(self.done) == len(self.task) == len(self.weights):
            share = _norm(self.gradients) / _norm(list(self.task.values()))
            growth = (self.task[0] * _real(self.weights[0])).sum().abs() * self.factor
            share = torch.where(self.loss_scale == 0, torch.nan, share)  # the user's own ramp, which is at zero
            self.note(torch.stack([share, growth / self.variance, self.rounding.to(share)]))
            self.unhook()

    def unhook(self) -> None:
        for handle in self.handles:
            handle.remove()


def _hooked(register: Callable[..., Any], hook: Any) -> Any:
    hook = partial(hook)
    hook.__torch_unserializable__ = True  # a model that is saved meanwhile leaves it out
    return register(hook)


def _real(t: Tensor) -> Tensor:
    """Return a tensor without its graph in float32, its real and imaginary parts where it is complex."""
    return (torch.view_as_real(t.detach().resolve_conj()) if t.is_complex() else t.detach()).float()


def _norm(gradients: list[Tensor]) -> Tensor:
    return torch.stack([g.square().sum() for g in gradients]).sum().sqrt()


def _variance_of(outputs: Tensor) -> Tensor:
    """Return the mean square of the outputs' distance from their mean, 0-dim."""
    return as_rows(outputs - outputs.mean(0)).square().sum(1).mean()
