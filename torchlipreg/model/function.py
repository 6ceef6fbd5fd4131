"""FixedFunction: the model as a function of raw inputs, while it is held fixed."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from torchlipreg.geometry.units import HALF, Units
from torchlipreg.model.frozen import FrozenState
from torchlipreg.model.internals.hooks import registered
from torchlipreg.model.internals.randomness import seeded
from torchlipreg.model.internals.switches import checkpoint_hook, force_eager
from torchlipreg.model.norms.following import Following
from torchlipreg.model.parts.modules import AsFound, compiled_module, has_own_mode, runs_compiled
from torchlipreg.model.parts.side import SideRows, fit_rows
from torchlipreg.outputs import select

OUTPUT_ERRORS = (TypeError, ValueError, KeyError, IndexError, AttributeError)
# Of an error that a wrong number of rows makes.
SIZE_WORDS = ("size", "shape", "dimension", "index", "broadcast", "batch")


class FixedFunction:
    """The model as a function of its input, while the context of :func:`fixed_function` lasts.

    Attributes:
        apart: Whether x and x′ need forwards of their own, so that the same random numbers meet the same rows.
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
        self._core, self._output, self._dtype, self._state = core, output, dtype, state
        self._units, self._kwargs, self._batch_size = units, kwargs, batch_size
        self._side: SideRows = {}
        self._is_compiled = runs_compiled(core)

    @property
    def found(self) -> AsFound:
        """The model outside of the context."""
        return self._state.found

    @property
    def per_position(self) -> bool:
        """Whether the last output, of this function or of one made of it, was (N, positions, *): one for each."""
        return self._state.per_position

    @property
    def met_inexact(self) -> bool:
        """Whether a module that the search had not found has run, and in the loop was not as in the fixed function."""
        return self._state.met_inexact

    @property
    def reruns(self) -> bool:
        """Whether a module has run in a backward of this function, and in no checkpoint."""
        return self._state.reruns

    def with_rows(self, side: SideRows) -> FixedFunction:
        """Return the same function with these side inputs, whose rows belong to those of its input."""
        if not side:
            return self
        twin = copy.copy(self)
        twin._side = side
        return twin

    def __call__(self, x: Tensor) -> Tensor:
        """Return f(x), shape (N, *), of raw inputs, with gradients to x and to the parameters."""
        if self._units is not None:
            return self.of_normalized(self._units.normalized(x))
        return self.of_normalized(x.clone() if self._dtype in (None, x.dtype) else x)

    def of_normalized(self, z: Tensor) -> Tensor:
        """Return f at inputs as the training loop has them, shape (N, *). An in-place first layer overwrites ``z``."""
        z = z if self._dtype in (None, z.dtype) else z.to(self._dtype)
        if self._is_compiled:
            torch._dynamo.maybe_mark_dynamic(z, 0)  # else a short last batch makes a new graph
        if self._state.stateful:
            self._state.renew()
        with self._noise(z.device):
            returned = self._returned(z)
            try:
                y, self._state.per_position = select(returned, self._output, z.shape[0])
            except OUTPUT_ERRORS as error:
                if isinstance(error, ValueError) and z.shape[0] != self._batch_size:
                    self._explain(error, z.shape[0])
                self._explain_output(error, returned)
                raise
        return y.float() if y.dtype in HALF else y

    def _returned(self, z: Tensor) -> Any:
        try:
            if self._side or self._kwargs:
                return self._core(z, **{**self._kwargs, **fit_rows(self._side, z.shape[0])})
            return self._core(z)
        except (RuntimeError, ValueError, IndexError, AttributeError, AssertionError) as error:
            self._explain(error, z.shape[0])
            raise

    def selected(self, returned: Any, x: Tensor) -> Tensor:
        """Return the tensor to penalise of what the model returned for x elsewhere; ``output`` may run modules."""
        with self._noise(x.device):
            return select(returned, self._output, len(x))[0]

    def _noise(self, device: torch.device) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self._noise_seed is None else seeded(self._noise_seed, device)

    def unseeded(self) -> FixedFunction:
        """Return the same function with random numbers of its own in each forward, unless the same were asked for."""
        twin = copy.copy(self)
        twin._noise_seed = self._noise_seed if self.apart else None
        return twin

    def watch_traces(self) -> None:
        """Note what the next forward starts from, with copies that it may write."""
        self._state.copy_tensors()
        self._state.note_start()

    def private_tensors(self) -> list[Tensor]:
        """Return the clones that forwards may write."""
        return self._state.private_tensors()

    def left_something(self) -> bool:
        """Say whether forwards since ``watch_traces`` have left something on modules, or where hooks collect."""
        return self._state.left_something()

    def set_stateful(self, stateful: bool) -> None:
        """Let each forward start from the same, if one leaves something for the next."""
        self._state.stateful = stateful

    @property
    def norms(self) -> Following:
        """The norms in train mode."""
        return self._state.norms

    def _explain(self, error: Exception, count: int) -> None:
        """Raise ValueError with the way out for the causes that are known; return for others."""
        if isinstance(error, AttributeError) and any(map(has_own_mode, self._state.modules)):
            raise ValueError(
                f"The model failed where its `training` flags are False: {error} What a train() or eval() of its own "
                "makes is not there, as these are not called. Make it in __init__() or in forward()."
            ) from error
        if "same dtype" in str(error):
            raise ValueError(
                f"The model failed on {self._dtype}, the dtype of its first parameter: {error} Pass a function that "
                "brings its input to the dtype that the first layer needs: lambda z: model(z.bfloat16())."
            ) from error
        if "does not require grad" in str(error) and not torch.is_grad_enabled():
            raise ValueError(
                f"The model failed where it runs without gradients, as for targets (`one_sided`) and measures: {error} "
                "A forward that takes a gradient itself must do so in torch.enable_grad()."
            ) from error
        if self._batch_size is None or not any(word in str(error) for word in SIZE_WORDS):
            return
        others = {name: len(v) for name, v in self._kwargs.items() if isinstance(v, Tensor) and v.dim()}
        if others:
            raise ValueError(
                f"Expected tensors in argument `model_kwargs` to have a row for each of the {self._batch_size} points "
                f"of `x`, or to fit any number of points, but got {others} rows, and the model failed: {error}"
            ) from error
        if count != self._batch_size:
            raise ValueError(
                f"The model failed on {count} points of a batch of {self._batch_size}: {error} If `model` closes over "
                "other inputs of the whole batch (masks, conditions, labels), pass them as argument `model_kwargs`, "
                "tensors with a row for each point of `x`, so that those of the points in use come along. A state of "
                "as many rows on the model, and a squeeze() of one row, do not go with `num_pairs`."
            ) from error

    def _explain_output(self, error: Exception, returned: Any) -> None:
        """Raise the same error with what may be behind it, where the loop has the model in train mode."""
        is_plain = self._output is None and isinstance(returned, Tensor)
        if any(self.found.training) and type(error) in OUTPUT_ERRORS and not is_plain:
            raise type(error)(
                f"{error} The model, in eval mode as a penalty calls it, returned a {type(returned).__name__}: does it "
                "return something else in train mode?"
            ) from error

    @property
    def follows(self) -> bool:
        """Whether :meth:`follow_statistics` has anything to do: a BatchNorm in train mode, and gradients."""
        return bool(self.norms.norms) and torch.is_grad_enabled()

    def follow_statistics(self, x: Tensor) -> Tensor | None:
        """Let the running statistics of train-mode BatchNorm follow the parameters: see :func:`batchnorm.fold`.

        Args:
            x: Data points, shape (N, *), over which the batch's statistics are taken.

        Returns:
            f(x); None where it has to be computed anew, as a norm was called twice and then followed the last call.
        """
        state = self._state
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
        twin = copy.copy(self)
        twin._core = compiled_module(self._core) or self._core
        return twin

    def meeting(self) -> contextlib.AbstractContextManager[None]:
        """Take in modules that run, but were not found, in eager forwards of an uncompiled function."""
        return self._state.meeting()

    @staticmethod
    def eagerly() -> contextlib.AbstractContextManager[None]:
        """Step around ``torch.compile``: graphs of their own for some seldom forwards would be a waste."""
        return force_eager.held()

    @property
    def is_sharded(self) -> bool:
        """Whether FSDP shards the model, so that a forward is a collective, and gradients are of shards."""
        return self._state.is_sharded
