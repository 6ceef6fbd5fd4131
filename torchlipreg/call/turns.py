"""Turns: on which of a step's calls ``interval`` falls, told by the backward that comes after them."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from torchlipreg.call.state import PenaltyState

ENOUGH = 8  # backwards that agree


class Turns:
    """Counts the calls from one that computes to its backward: with an even ``interval``, two a step, always two."""

    def __init__(self) -> None:
        self._calls = self._agreeing = 0

    def follow(self, penalty: Tensor, state: PenaltyState) -> None:
        """Count from this call on, which has not been noted in the state, to the backward of what it returns."""
        if penalty.requires_grad:
            penalty.register_hook(partial(self._note, state, state.calls))  # type: ignore[no-untyped-call]

    def _note(self, state: PenaltyState, call: int, gradient: Tensor) -> None:
        calls = state.calls - call
        self._agreeing = self._agreeing + 1 if calls == self._calls else 1
        self._calls = calls

    def warning(self, interval: int) -> str | None:
        """Return what to tell the user if of several calls a step all but the first are left out."""
        if self._calls < 2 or self._agreeing < ENOUGH:
            return None
        return (
            f"`interval`={interval} counts calls: of the {self._calls} before each backward it always falls on the "
            "first, and the others add nothing. If they are of other data, as two views, or real and fake, make a "
            "penalty for each; if they are batches that accumulate, all is well."
        )
