"""Backwards: what they tell: is the penalty in the loss, and on which calls and models does ``interval`` fall?"""

from __future__ import annotations

import weakref
from functools import partial
from typing import Any

from torch import Tensor, nn

from torchlipreg.call.state import PenaltyState

UNADDED = 400  # computed calls after which a penalty that nobody has added to a loss is told
ENOUGH = 8  # backwards that agree; intervals of calls with a model, none of which was computed


class Backwards:
    """Sees the backwards that come through what calls return, and counts the calls from one that computes to its own.

    Args:
        interval: Of the penalty.

    Attributes:
        any: One has ever come.
    """

    def __init__(self, interval: int) -> None:
        self._interval, self.any = interval, False
        self._without = 0  # calls whose value none has come through
        self._calls = self._agreeing = 0  # in a step; steps with as many
        self._turns: dict[weakref.ref[nn.Module], list[int]] = {}  # calls with a model: skipped, and computed

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_turns": {}}  # of models that a copy does not have

    def start_anew(self) -> None:
        """Forget the calls that met none: a state was loaded."""
        self._without = 0

    def skip(self, model: Any) -> None:
        """Note a call that ``interval`` leaves out."""
        self._turn(model, 0)

    def _turn(self, model: Any, computed: int) -> None:
        if self._interval > 1 and isinstance(model, nn.Module):  # a lambda may be another in each call
            if (ref := weakref.ref(model)) not in self._turns:
                self._turns = {**self._living(), ref: [0, 0]}
            self._turns[ref][computed] += 1

    def _living(self) -> dict[weakref.ref[nn.Module], list[int]]:
        return {ref: turns for ref, turns in self._turns.items() if ref() is not None}

    def follow(self, penalty: Tensor, state: PenaltyState, model: Any, *, moves: bool) -> None:
        """Wait for the backward of what a call returns, which has not been noted in the state."""
        if moves:
            self._turn(model, 1)
        self._without += moves and penalty.requires_grad
        if penalty.requires_grad and (not self.any or self._interval > 1):
            note = partial(self._note, state, state.calls, counts=moves)
            penalty.register_hook(note)  # type: ignore[no-untyped-call]

    def _note(self, state: PenaltyState, call: int, gradient: Tensor, *, counts: bool) -> None:
        self.any = True
        if counts:
            calls = state.calls - call
            self._agreeing = self._agreeing + 1 if calls == self._calls else 1
            self._calls = calls

    def cautions(self) -> dict[str, str]:
        """Return what the user should know, by what it is about: each is told once."""
        found = {}
        if self._without > UNADDED and not self.any:
            found["unadded"] = (
                f"The penalty was computed {UNADDED} times, but no backward came through it: add what it returns to "
                "the loss. Call it under torch.no_grad() where its value alone is wanted."
            )
        if self._interval > 1 and self._calls > 1 and self._agreeing >= ENOUGH:
            found["turns"] = (
                f"`interval`={self._interval} counts calls: of the {self._calls} before each backward it always falls "
                "on the first, and the others add nothing. If they are of other data, as two views, or real and fake, "
                "make a penalty for each; if they are batches that accumulate, all is well."
            )
        turns = self._living().values()
        if len(turns) > 1 and any(not computed and skipped >= ENOUGH * self._interval for skipped, computed in turns):
            found["models"] = (
                f"`interval`={self._interval} counts the calls with all models: on those with one of them it has never "
                "fallen, and nothing is added there. Make a penalty for each model."
            )
        return found
