"""FixedFunction: the model as a function of raw inputs, while it is held fixed."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from torchlipreg.geometry.units import HALF, Units
from torchlipreg.model.failures import FORWARD_ERRORS, OUTPUT_ERRORS, of_forward, of_output, of_rows
from torchlipreg.model.frozen import FrozenState
from torchlipreg.model.internals.hooks import registered
from torchlipreg.model.internals.randomness import seeded
from torchlipreg.model.internals.switches import checkpoint_hook, force_eager
from torchlipreg.model.parts.modules import compiled_module, runs_compiled
from torchlipreg.model.parts.side import SideRows, fit_rows
from torchlipreg.outputs import is_own, select


class FixedFunction:
    """The model as a function of its input, while the context of :func:`fixed_function` lasts.

    Attributes:
        apart: Whether x and x′ need forwards of their own, so that the same random numbers meet the same rows.
        state: The modules as they are held.
    """

    def __init__(
        self,
        core: Callable[..., Any],
        output: Callable[[Any], Any] | None,
        dtype: torch.dtype | None,
        state: FrozenState,
        units: Units | None,
        kwargs: Mapping[str, Any],
        batch_size: int | None,
        noise_seed: int | None = None,
        *,
        apart: bool = False,
    ) -> None:
        self._noise_seed, self.apart = noise_seed, apart
        self._core, self._output, self._dtype, self.state = core, output, dtype, state
        self._units, self._kwargs, self._batch_size = units, kwargs, batch_size
        self._side: SideRows = {}
        self._is_compiled = runs_compiled(core)

    @property
    def per_position(self) -> bool:
        """Whether the last output, of this function or of one made of it, was (N, positions, *): one for each."""
        return self.state.per_position

    def with_rows(self, side: SideRows) -> FixedFunction:
        """Return the same function with these side inputs, whose rows belong to those of its input."""
        if not side:
            return self
        return self._but(_side=side)

    def __call__(self, x: Tensor) -> Tensor:
        """Return f(x), shape (N, *), of raw inputs, with gradients to x and to the parameters."""
        if self._units is not None:
            return self.of_normalized(self._units.normalized(x))
        return self.of_normalized(x.clone() if self._dtype in (None, x.dtype) else x)

    def of_normalized(self, z: Tensor) -> Tensor:
        """Return f at inputs as the training loop has them, shape (N, *). An in-place first layer overwrites ``z``."""
        with self._noise(z.device):
            returned = self._returned(z)
            try:
                y, self.state.per_position = select(returned, self._output, z.shape[0])
            except OUTPUT_ERRORS as error:
                if isinstance(error, ValueError) and z.shape[0] != self._batch_size:
                    self._explain(error, z.shape[0])
                is_plain = is_own(self._output) and isinstance(returned, Tensor)
                if any(self.state.found.training) and type(error) in OUTPUT_ERRORS and not is_plain:
                    raise type(error)(of_output(error, returned)) from error
                raise
        return y.float() if y.dtype in HALF else y

    def returned(self, z: Tensor) -> Any:
        """Return all that the model does, of which :meth:`of_normalized` selects a tensor."""
        with self._noise(z.device):
            return self._returned(z)

    def _returned(self, z: Tensor) -> Any:
        z = z if self._dtype in (None, z.dtype) else z.to(self._dtype)
        if self._is_compiled:
            torch._dynamo.maybe_mark_dynamic(z, 0)  # else a short last batch makes a new graph
        if self.state.stateful:
            self.state.renew()
        try:
            if self._side or self._kwargs:
                return self._core(z, **{**self._kwargs, **fit_rows(self._side, z.shape[0])})
            return self._core(z)
        except FORWARD_ERRORS as error:
            self._explain(error, z.shape[0])
            raise

    def _explain(self, error: Exception, count: int) -> None:
        """Raise ValueError with the way out for the causes that are known; return for others."""
        way_out = of_forward(error, self.state.modules, self._dtype)
        way_out = way_out or of_rows(error, self._kwargs, self._batch_size, count)
        if way_out is not None:
            raise ValueError(way_out) from error

    def selected(self, returned: Any, x: Tensor) -> Tensor:
        """Return the tensor to penalise of what the model returned for x elsewhere; ``output`` may run modules."""
        with self._noise(x.device):
            return select(returned, self._output, len(x))[0]

    def _noise(self, device: torch.device) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self._noise_seed is None else seeded(self._noise_seed, device)

    def unseeded(self) -> FixedFunction:
        """Return the same function with random numbers of its own in each forward, unless the same were asked for."""
        return self if self.apart else self._but(_noise_seed=None)

    @property
    def follows(self) -> bool:
        """Whether :meth:`follow_statistics` has anything to do: a BatchNorm in train mode, and gradients."""
        return bool(self.state.norms.norms) and torch.is_grad_enabled()

    def follow_statistics(self, x: Tensor) -> Tensor | None:
        """Let the running statistics of train-mode BatchNorm follow the parameters.

        How is in :func:`torchlipreg.model.norms.batchnorm.fold`.

        Args:
            x: Data points, shape (N, *), over which the batch's statistics are taken.

        Returns:
            f(x); None where it has to be computed anew, as a norm was called twice and then followed the last call.
        """
        state = self.state
        with contextlib.ExitStack() as stack:
            for m in state.norms.norms:
                stack.enter_context(registered(m.register_forward_pre_hook, state.norms.follow, with_kwargs=True))
            stack.enter_context(checkpoint_hook(contextlib.nullcontext))  # hooks do not run in a recomputation
            stack.enter_context(self.eagerly())
            fx = self(x)
        state.settle()
        return None if state.norms.repeated else fx

    def uncompiled(self) -> FixedFunction:
        """Return the same function of the module inside the wrapper of ``torch.compile``, if there is one."""
        return self._but(_core=compiled_module(self._core) or self._core)

    def _but(self, **changed: Any) -> FixedFunction:
        twin = copy.copy(self)
        vars(twin).update(changed)
        return twin

    @staticmethod
    def eagerly() -> contextlib.AbstractContextManager[None]:
        """Step around ``torch.compile``: graphs of their own for some seldom forwards would be a waste."""
        return force_eager.held()
