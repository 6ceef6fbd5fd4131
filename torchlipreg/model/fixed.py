"""The model as a fixed function of its input, leaving no trace: wrappers, flags, buffers, precision."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils.hooks import RemovableHandle

from torchlipreg.geometry.units import Units
from torchlipreg.model.frozen import FrozenState
from torchlipreg.model.modules import AsFound, all_modules, compiled_module, parameter_dtype, unwrap
from torchlipreg.model.parallelism import check_forward_mode, is_sharded
from torchlipreg.model.recomputation import recomputing_under
from torchlipreg.model.side import SideRows, fit_rows
from torchlipreg.model.switches import checkpoint_hook, force_eager, forward_mode_kernels, one_path_of_attention
from torchlipreg.outputs import select

Function = Callable[[Tensor], Tensor]
REFUSED = (torch.jit.ScriptModule, LazyModuleMixin)
# Of an error that a wrong number of rows makes.
SIZE_WORDS = ("size", "shape", "dimension", "index", "broadcast", "batch")


@contextlib.contextmanager
def fixed_function(
    model: Callable[..., Any],
    output: Callable[[Any], Any] | None = None,
    *,
    eager: bool = False,
    units: Units | None = None,
    kwargs: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
    carries: bool = True,
    meet: bool = True,
) -> Iterator[FixedFunction]:
    """Give the model as a fixed, deterministic function of its input for the length of the context.

    Inside, BatchNorm uses its running statistics, Dropout and stochastic depth are off, autocast is off (Accelerate's
    included), buffers are clones and gradient checkpoints recompute in the same state. Everything is restored on
    leaving, also after an exception. Graphs that are built inside stay right for a later backward. Where BatchNorm is
    being trained, :meth:`FixedFunction.follow_statistics` completes the gradient.

    Args:
        model: Function, ``nn.Module``, or one wrapped in DDP, DataParallel, FSDP or ``torch.compile``. The modules
            that a plain function or lambda uses are found by :func:`torchlipreg.model.modules.find_modules`.
        output: From the model's return value to the tensor that counts; default ``default_output``.
        eager: Step around ``torch.compile``, for transforms that it does not support (``torch.func.jvp``).
        units: The normalisation that the loop has applied to raw inputs: f then takes raw ones.
        kwargs: What else the model takes by name, the same for any part of the batch.
        batch_size: How many points the loop's batch has, for an error message.
        carries: A forward may leave something for the next one: let each start from the same.
        meet: Also freeze modules that run, but were not found; for functions that is always done.

    Raises:
        TypeError: If the model is not callable, or scripted.
        ValueError: If a lazy module has no parameters yet.

    Yields:
        A function from inputs, shape (N, *), to outputs, shape (N, *), float32 or float64. It overwrites neither
        its argument (an in-place first layer gets a copy) nor a buffer.
    """
    if not callable(model):
        raise TypeError(
            f"Expected argument `model` to be callable, got {type(model).__name__}: the order is (model, x, outputs)."
        )
    core = unwrap(model)
    if eager:
        core = compiled_module(core) or core
    modules = all_modules(core)
    for m in modules:
        if isinstance(m, REFUSED):
            _refuse(m)
    if eager:
        check_forward_mode(modules)
    state = FrozenState(core, modules, eager, carries)
    # Under torch.func.jvp a checkpoint cannot recompute (another number of tensors is saved): it keeps activations.
    hook = contextlib.nullcontext if eager else recomputing_under(state.applied)
    with contextlib.ExitStack() as stack:
        for device in state.found.autocast:  # rounding to bfloat16 makes the quotient of a close pair far too large
            stack.enter_context(torch.autocast(device, enabled=False))
        stack.enter_context(checkpoint_hook(hook))
        stack.enter_context(one_path_of_attention.held())
        if eager:
            stack.enter_context(forward_mode_kernels.held())
        stack.enter_context(state.applied())
        if (meet or not isinstance(core, nn.Module)) and not any(compiled_module(m) for m in modules):
            stack.enter_context(_removed(register_module_forward_pre_hook(state.meet)))
        yield FixedFunction(core, output, parameter_dtype(modules), state, units, kwargs or {}, batch_size)


def _refuse(m: nn.Module) -> None:
    if isinstance(m, torch.jit.ScriptModule):
        raise TypeError("A scripted model cannot be held in a fixed state: pass the nn.Module, or use torch.compile.")
    raise ValueError(
        f"Expected argument `model` to have all its parameters, but {type(m).__name__} makes them in its first "
        "forward: call the model once before the penalty."
    )


class FixedFunction:
    """The model as a function of its input, while the context of :func:`fixed_function` lasts.

    Attributes:
        per_position: Whether the last output was one for each position, shape (N, positions, *).
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
    ) -> None:
        self._core, self._output, self._dtype, self._state = core, output, dtype, state
        self._units, self._kwargs, self._batch_size = units, kwargs, batch_size
        self._side: SideRows = {}
        self.per_position = False
        in_place = getattr(core, "_compiled_call_impl", None)  # by m.compile()
        self._is_compiled = compiled_module(core) is not None or in_place is not None

    @property
    def found(self) -> AsFound:
        """The model outside of the context."""
        return self._state.found

    def given(self, side: SideRows) -> FixedFunction:
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
        if self._state.carries:
            self._state.renew()
        try:
            if self._side or self._kwargs:
                returned = self._core(z, **self._kwargs, **fit_rows(self._side, z.shape[0]))
            else:
                returned = self._core(z)
        except (RuntimeError, ValueError, IndexError) as error:
            self._explain(error, z.shape[0])
            raise
        y, self.per_position = select(returned, self._output, z.shape[0])
        return y.float() if y.dtype in (torch.float16, torch.bfloat16) else y

    def _explain(self, error: Exception, count: int) -> None:
        """Raise ValueError where the model failed because a part of the batch met inputs of the whole batch."""
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
                "tensors with a row for each point of `x`, so that those of the points in use come along."
            ) from error

    @property
    def follows(self) -> bool:
        """Whether :meth:`follow_statistics` has anything to do: a BatchNorm in train mode, and gradients."""
        return bool(self._state.following) and torch.is_grad_enabled()

    @property
    def cannot_follow(self) -> bool:
        """Whether the statistics of train-mode BatchNorm cannot follow the parameters, because FSDP shards these."""
        return self._state.cannot_follow

    def follow_statistics(self, x: Tensor) -> Tensor:
        """Let the running statistics of train-mode BatchNorm follow the parameters: see :func:`batchnorm.follow`.

        Args:
            x: Data points, shape (N, *), over which the batch's statistics are taken.

        Returns:
            f(x).
        """
        state = self._state
        with contextlib.ExitStack() as stack:
            for m in state.following:
                stack.enter_context(_removed(m.register_forward_pre_hook(state.follow, with_kwargs=True)))
            stack.enter_context(checkpoint_hook(contextlib.nullcontext))  # hooks do not run in a recomputation
            stack.enter_context(self.eagerly())
            fx = self(x)
        state.settle()
        return fx

    @staticmethod
    def eagerly() -> contextlib.AbstractContextManager[None]:
        """Step around ``torch.compile``: graphs of their own for some seldom forwards would be a waste."""
        return force_eager.held()

    @property
    def is_sharded(self) -> bool:
        """Whether FSDP shards the model, so that a forward is a collective, and gradients are of shards."""
        return is_sharded(self._state.modules)


@contextlib.contextmanager
def _removed(hook: RemovableHandle) -> Iterator[None]:
    try:
        yield
    finally:
        hook.remove()
