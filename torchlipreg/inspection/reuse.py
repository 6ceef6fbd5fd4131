"""May the outputs that the training loop has computed stand for f(x)? Then a penalised step saves a forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchlipreg.distributed import largest
from torchlipreg.geometry.pairs import at_least_one
from torchlipreg.geometry.units import HALF
from torchlipreg.inspection.closeness import TOLERANCE, differs
from torchlipreg.inspection.probes import GraphOfOutputs, of_graph
from torchlipreg.model.function import FixedFunction
from torchlipreg.model.internals.to_host import Later
from torchlipreg.model.parts.side import SideRows
from torchlipreg.outputs import default_output

NO_GRADIENT = (
    "`outputs` depend on parameters that the model gives no gradient where it is held fixed (eval mode): {}. The "
    "penalty has none for them either: a part of the forward builds a graph only where `self.training` is true. Ask "
    "torch.is_grad_enabled() there instead."
)
SOON, AGAIN = 4, 64  # calls to the second look, to each from then on; in between at 8, 16 and 32


class LoopOutputs(NamedTuple):
    """What the training loop's ``model(x)`` returned, as far as it is penalised.

    Attributes:
        x: The loop's inputs, shape (N, *).
        y: The loop's outputs, shape (N, *).
        side: What else the model takes, with a row for each of the inputs.
        rounded: What the loop's model returned was in half precision, even if ``y`` is not.
        pulls: An input carries a gradient, to which f(x) would add while x′ is seen with constants.
    """

    x: Tensor
    y: Tensor
    side: SideRows
    rounded: bool
    pulls: bool

    @classmethod
    def select(
        cls, x: Tensor, outputs: Any, side: SideRows, selected: Callable[[Any, Tensor], Tensor], *, pulls: bool
    ) -> LoopOutputs:
        """Select the tensor to penalise from what the loop's model returned: a row for each of x, or ValueError."""
        try:
            y = selected(outputs, x)
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"Expected argument `outputs` to be model(x), with {len(x)} rows. {error}") from error
        rounded = getattr(default_output(outputs), "dtype", None) in HALF
        return cls(x, y, side, rounded, pulls)


class OutputReuse:
    """Remembers whether ``model(x)``, as the loop computed it, equals the fixed function f(x).

    It does if no Dropout, stochastic depth or train-mode BatchNorm is active, the outputs are in full precision and
    carry a gradient, and a forward of the fixed function gives the same values of the same parameters. They are
    compared once for each new model, set of training flags and shapes, again 4, 8, 16, ... calls later and in every
    64th, and the outcome is read when it has arrived on the host: the loop may mix some of its batches, noise may have
    been scheduled up from zero, or a branch grown that did not count at first.

    Attributes:
        verdict: True or False after the last look, None before.
        caution: What the user should know of the graph of the outputs, if anything.
    """

    def __init__(self) -> None:
        self.verdict: bool | None = None
        self.caution: str | None = None
        self._signature: tuple[Any, ...] | None = None
        self._calls = 0
        self._later = Later()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_signature": None}  # of a model that a copy does not have

    def allowed(self, f: FixedFunction, loop: LoopOutputs, *, may_serve: bool, target: bool) -> bool:
        """Say whether ``loop.y`` may be used for f(x).

        Reads tensor values only when the model's training flags, autocast or a shape differ from the last call's.

        Args:
            f: The model as a fixed function.
            loop: The loop's inputs and outputs.
            may_serve: Not ruled out by what a comparison of values does not show: a function that each forward
                changes, a gradient that f(x) needs and ``loop.y`` has not.
            target: f(x) is used without its gradient.

        Returns:
            True if ``loop.y`` is f(x), gradient included.

        Raises:
            ValueError: If ``loop.y`` has another shape than f(x).
        """
        (x, y, side, rounded, _), found = loop, f.state.found
        usable = may_serve and not (found.inexact or x.device.type in found.autocast)
        usable = usable and not rounded and y.dtype in (torch.float32, torch.float64)
        sharded = f.state.is_sharded
        # Where a forward is a collective, nothing that differs between ranks, as shapes may, decides on one.
        signature = (found, usable, torch.is_grad_enabled(), sharded or (x.shape[1:], y.shape[1:]))
        if signature != self._signature:
            # The shapes are compared in any case.
            different, blank, graph = self._compare(f.with_rows(side), x, y, graph=usable and not target)
            seen = torch.stack([different if usable else torch.ones_like(different), blank]).float()
            is_different, is_blank = (bool(flag) for flag in (largest(seen) if sharded else seen).tolist())
            self.verdict = not (is_different or is_blank or graph.differs)
            self.caution = None if is_different or not graph.lacks else NO_GRADIENT.format(", ".join(graph.lacks))
            self._signature = None if is_blank else signature  # a last layer of zeros proves nothing: look again
            self._calls, self._later = 0, Later()
        elif self.verdict and not sharded:  # then ranks might come to disagree
            self._look_again(f.with_rows(side), x, y, graph=not target)
        return bool(self.verdict)

    def _look_again(self, f: FixedFunction, x: Tensor, y: Tensor, *, graph: bool) -> None:
        """Compare the values now and then; go by the last outcome that has arrived."""
        self._calls += 1
        soon = SOON <= self._calls < AGAIN and self._calls & (self._calls - 1) == 0
        if self._later.take_flag():
            self.verdict = False
        elif soon or self._calls % AGAIN == 0:
            different, _, found = self._compare(f, x, y, graph=graph)
            self._later.send_flag(different | found.differs)

    @staticmethod
    def _compare(f: FixedFunction, x: Tensor, y: Tensor, *, graph: bool) -> tuple[Tensor, Tensor, GraphOfOutputs]:
        """Say whether the values differ, whether they are the same for every x, 0-dim, and what graphs they have."""
        if len(x) == 0:  # the other ranks run a forward
            f.of_normalized(at_least_one(x))
            return x.new_zeros((), dtype=torch.bool), x.new_zeros((), dtype=torch.bool), GraphOfOutputs()
        # Not under no_grad, for which torch.compile would make another graph.
        exact = f.of_normalized(x.detach().clone())
        graphs = of_graph(f, x, exact, y) if graph and torch.is_grad_enabled() else GraphOfOutputs()
        exact = exact.detach()
        if exact.shape != y.shape:
            raise ValueError(
                f"Expected argument `outputs` to be model(x), of shape {tuple(exact.shape)}, but got "
                f"{tuple(y.shape)}. Pass what the model returned for this `x`, or leave `outputs` out."
            )
        blank = (exact == exact[:1]).all() if len(x) > 1 else (exact == 0).all()
        different = (differs(exact, y.detach(), TOLERANCE) | exact.isnan()).any()
        rounded = exact.dtype == torch.float64 != y.dtype  # by Fabric, which returns float32 of a float64 model
        return different | rounded, blank, graphs
