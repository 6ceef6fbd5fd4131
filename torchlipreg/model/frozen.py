"""The model as a fixed function of its input, leaving no trace: wrappers, flags, buffers, precision."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from torchlipreg.checks import check_output
from torchlipreg.model.batchnorm import can_follow, follow, tracks_batches
from torchlipreg.model.checkpoints import checkpoint_hook, recomputing_under
from torchlipreg.model.modules import all_modules, compiled_module, parameter_dtype, train_signature, unwrap
from torchlipreg.model.parallelism import check_forward_mode, is_sharded
from torchlipreg.outputs import default_output

Function = Callable[[Tensor], Tensor]
AUTOCAST_DEVICES = ("cpu", "cuda", "xpu", "mps")


class AsFound(NamedTuple):
    """The model outside of the context of :func:`fixed_function`: where its forward may differ from the fixed one.

    Attributes:
        inexact: Dropout, stochastic depth or BatchNorm is in train mode.
        training: The training flag of each module.
        autocast: Types of the devices for which autocast was on.
    """

    inexact: bool
    training: list[bool]
    autocast: list[str]


@contextlib.contextmanager
def fixed_function(
    model: Callable[[Tensor], Any], output: Callable[[Any], Any] | None = None, *, eager: bool = False
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

    Raises:
        TypeError: If the model is not callable, or scripted.

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
    if any(isinstance(m, torch.jit.ScriptModule) for m in modules):
        raise TypeError("A scripted model cannot be held in a fixed state: pass the nn.Module, or use torch.compile.")
    if eager:
        check_forward_mode(modules)
    found = AsFound(*train_signature(modules), [d for d in AUTOCAST_DEVICES if torch.is_autocast_enabled(d)])
    state = _FrozenState(modules, eager)
    # Under torch.func.jvp a checkpoint cannot recompute (another number of tensors is saved): it keeps activations.
    hook = contextlib.nullcontext if eager else recomputing_under(state.applied)
    with contextlib.ExitStack() as stack:
        for device in found.autocast:  # rounding to bfloat16 makes the quotient of a close pair many times too large
            stack.enter_context(torch.autocast(device, enabled=False))
        stack.enter_context(checkpoint_hook(hook))
        stack.enter_context(state.applied())
        yield FixedFunction(core, default_output if output is None else output, parameter_dtype(modules), state, found)


class FixedFunction:
    """The model as a function of its input, while the context of :func:`fixed_function` lasts.

    Attributes:
        found: The model outside of the context.
    """

    def __init__(
        self,
        core: Callable[[Tensor], Any],
        select: Callable[[Any], Any],
        dtype: torch.dtype | None,
        state: _FrozenState,
        found: AsFound,
    ) -> None:
        self._core, self._select, self._dtype, self._state, self.found = core, select, dtype, state, found
        in_place = getattr(core, "_compiled_call_impl", None)  # by m.compile()
        self._is_compiled = compiled_module(core) is not None or in_place is not None

    def __call__(self, x: Tensor) -> Tensor:
        """Return f(x), shape (N, *), with gradients to x and to the parameters."""
        z = x.clone() if self._dtype in (None, x.dtype) else x.to(self._dtype)
        if self._is_compiled:
            torch._dynamo.maybe_mark_dynamic(z, 0)  # else a short last batch makes a new graph
        y = check_output(self._select(self._core(z)), x.shape[0])
        return y.float() if y.dtype in (torch.float16, torch.bfloat16) else y

    @property
    def follows(self) -> bool:
        """Whether :meth:`follow_statistics` has anything to do: a BatchNorm in train mode, and gradients."""
        return bool(self._state.parameters) and torch.is_grad_enabled()

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
            for m in state.parameters:
                stack.enter_context(_removed(m.register_forward_pre_hook(state.follow, with_kwargs=True)))
            stack.enter_context(checkpoint_hook(contextlib.nullcontext))  # hooks do not run in a recomputation
            if "torch._dynamo" in sys.modules:  # a graph of its own for this one forward would be a waste
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            return self(x)


class _FrozenState:
    """The frozen values of a list of modules: flags, one clone of every buffer, BatchNorm that follows a batch."""

    def __init__(self, modules: list[nn.Module], eager: bool) -> None:
        self.modules, self.eager = modules, eager
        # Eval-mode BatchNorm keeps its running statistics for backward by reference: a later train-mode forward
        # would overwrite them, without an error, and the penalty's gradient would be wrong.
        self.buffers: dict[nn.Module, dict[str, Tensor | None]] = {
            m: {name: None if b is None else b.detach().clone() for name, b in m._buffers.items()}
            for m in modules
            if m._buffers
        }
        tracking = [m for m in self.buffers if tracks_batches(m)]
        self.cannot_follow = bool(tracking) and is_sharded(modules)  # FSDP puts parameters in place itself
        following = [] if self.cannot_follow else [m for m in tracking if can_follow(m)]
        self.originals = {m: (m._parameters, self.buffers[m]) for m in following}
        self.parameters: dict[nn.Module, dict[str, Any]] = {m: values for m, (values, _) in self.originals.items()}

    def follow(self, m: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Serve as a forward pre-hook of BatchNorm: from now on its statistics follow those of this input."""
        h = args[0] if args else kwargs["input"]
        self.parameters[m], self.buffers[m] = follow(cast(Any, m).eps, h, *self.originals[m])
        self._swap(m)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Put the frozen values in place, and the modules' own ones back on leaving."""
        undo: list[tuple[dict[str, Any], str, Any]] = []
        try:
            for m in self.modules:
                self._freeze(m, undo)
            for m in self.buffers:
                undo += [(m.__dict__, name, m.__dict__[name]) for name in ("_buffers", "_parameters")]
                self._swap(m)
            yield
        finally:
            for values, name, value in reversed(undo):
                values[name] = value

    def _swap(self, m: nn.Module) -> None:
        m.__dict__["_buffers"] = dict(self.buffers[m])
        if m in self.parameters:
            m.__dict__["_parameters"] = self.parameters[m]

    def _freeze(self, m: nn.Module, undo: list[tuple[dict[str, Any], str, Any]]) -> None:
        values, is_recurrent = m.__dict__, isinstance(m, nn.RNNBase)
        # The flag, not eval(): an overridden train() may edit weights, as LoRA's merge does. cuDNN's RNN backward needs
        # train mode, so its dropout goes instead.
        _put(values, "training", is_recurrent, undo)
        if is_recurrent:
            _put(values, "dropout", 0.0, undo)
        if "_original_forward" in values:  # Accelerate's mixed precision enters autocast inside model.forward
            _put(values, "forward", values["_original_forward"], undo)
        if self.eager:
            _put(values, "_compiled_call_impl", None, undo)  # of m.compile(), in place
        if "attention_bias_cache" in values:  # of timm's LeViT and others, filled in eval mode: would keep a graph
            _put(values, "attention_bias_cache", {}, undo)


def _put(values: dict[str, Any], name: str, value: Any, undo: list[tuple[dict[str, Any], str, Any]]) -> None:
    old = values.get(name, value)  # OptimizedModule has no flag of its own
    if old is not value:
        undo.append((values, name, old))
        values[name] = value


@contextlib.contextmanager
def _removed(hook: RemovableHandle) -> Iterator[None]:
    try:
        yield
    finally:
        hook.remove()
