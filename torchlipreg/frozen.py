"""The model as a fixed function of its input, leaving no trace: wrappers, flags, buffers, precision."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from types import MethodType, ModuleType
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from torchlipreg.checks import check_output

Function = Callable[[Tensor], Tensor]
STOCHASTIC_RATES = ("p", "dropout", "drop_prob")  # nn.Dropout, nn.LSTM and nn.MultiheadAttention, timm's DropPath


@contextlib.contextmanager
def fixed_function(
    model: Callable[[Tensor], Any], output: Callable[[Any], Any] | None = None, *, eager: bool = False
) -> Iterator[Function]:
    """Give the model as a fixed, deterministic function of its input for the length of the context.

    Inside, BatchNorm uses its running statistics, Dropout and stochastic depth are off, autocast is off (Accelerate's
    included), buffers are clones and gradient checkpoints recompute in the same state. Everything is restored on
    leaving, also after an exception. Graphs that are built inside stay right for a later backward.

    Args:
        model: Function, ``nn.Module``, or one wrapped in DDP, DataParallel, FSDP or ``torch.compile``. The modules
            that a plain function or lambda uses are found by :func:`find_modules`.
        output: From the model's return value to the tensor that counts; default :func:`default_output`.
        eager: Step around ``torch.compile``, for transforms that it does not support (``torch.func.jvp``).

    Yields:
        A function from inputs, shape (N, *), to outputs, shape (N, *), float32 or float64. It overwrites neither
        its argument (an in-place first layer gets a copy) nor a buffer.
    """
    core = unwrap(model)
    if eager:
        core = getattr(core, "_orig_mod", core)
    roots = find_modules(core)
    modules = list({id(m): m for root in roots for m in root.modules()}.values())
    select = default_output if output is None else output
    dtype = _parameter_dtype(modules)
    state = _FrozenState(modules, eager)

    def function(x: Tensor) -> Tensor:
        z = x.to(dtype, copy=True) if dtype else x.clone()
        if isinstance(getattr(core, "_orig_mod", None), nn.Module) or getattr(core, "_compiled_call_impl", None):
            torch._dynamo.maybe_mark_dynamic(z, 0)  # else a short last batch makes a new graph
        y = check_output(select(core(z)), len(x))
        return y.float() if y.dtype in (torch.float16, torch.bfloat16) else y

    with state.applied(), _no_autocast(), _checkpoints_recompute_under(state):
        yield function


def unwrap(model: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    """Return what a penalty may call: without DDP and DataParallel, but compiled, and through FSDP's wrapper.

    Extra forwards through DDP's wrapper would break its gradient reduction (silently so with ``static_graph``);
    FSDP in contrast must be entered through its outermost ``__call__``, which gathers the parameters.
    """
    inner = getattr(model, "_orig_mod", None)
    if isinstance(inner, nn.Module) and unwrap(inner) is not inner:  # compile(DDP(m)): the graph holds the wrapper
        return unwrap(inner)
    if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        return unwrap(model.module)
    return model


def find_modules(f: Callable[..., Any]) -> list[nn.Module]:
    """Return the modules that a callable is or uses.

    Looks into a function's closure and globals, its helpers in the same file, a partial's arguments, the object of a
    method, and one level into the lists, dicts and objects found there.
    """
    found: list[nn.Module] = []
    seen: set[int] = set()
    queue: list[Any] = [f]
    while queue:
        value = queue.pop(0)
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, nn.Module):
            found.append(unwrap(value))  # type: ignore[arg-type]
        else:
            queue += _uses(value)
    return found


def _uses(value: Any) -> list[Any]:
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, MethodType):
        return [value.__self__, value.__func__]
    if inspect.isfunction(value):
        names = inspect.getclosurevars(value)
        used = [v for v in names.globals.values() if not inspect.isfunction(v) or v.__globals__ is value.__globals__]
        return [*names.nonlocals.values(), *used]
    if isinstance(value, (type, ModuleType, Tensor)):
        return []
    if not isinstance(value, (list, tuple)):
        value = (value if isinstance(value, dict) else getattr(value, "__dict__", {})).values()
    return [v for v in value if isinstance(v, nn.Module)]


def default_output(y: Any) -> Any:
    """Return the tensor to penalise: a tensor itself, ``.logits``, ``["logits"]``, or else the first element."""
    if isinstance(y, Tensor):
        return y
    if getattr(y, "logits", None) is not None:
        return y.logits
    if isinstance(y, Mapping) and y:
        return y["logits"] if "logits" in y else next(iter(y.values()))
    if isinstance(y, (tuple, list)) and y:
        return y[0]
    return y


def compute_dtype(model: Callable[[Tensor], Any], x: Tensor) -> torch.dtype:
    """Return the dtype in which the fixed function computes: that of the parameters, or float32 or more without.

    Under FSDP's own mixed precision it is the policy's: parameters are gathered in it, and that cannot be switched off.
    """
    modules = [m for root in find_modules(unwrap(model)) for m in root.modules()]
    return _sharding_dtype(modules) or _parameter_dtype(modules) or torch.promote_types(x.dtype, torch.float32)


def train_signature(model: Callable[[Tensor], Any]) -> tuple[bool, tuple[Any, ...]]:
    """Describe how the model's training mode may differ from the fixed function.

    Returns:
        Whether a stochastic rate is set in a training module (Dropout, stochastic depth), and a tuple that changes
        with any training flag. Both read Python attributes only.
    """
    modules = [m for root in find_modules(unwrap(model)) for m in root.modules()]
    stochastic = any(
        m.training and isinstance(rate := m.__dict__.get(name), (int, float)) and rate > 0
        for m in modules
        for name in STOCHASTIC_RATES
    )
    return stochastic, tuple(m.training for m in modules)


def _sharding_dtype(modules: list[nn.Module]) -> torch.dtype | None:
    for m in modules:
        state = getattr(m, "_get_fsdp_state", lambda: None)()  # FSDP2
        policy = getattr(state, "_mp_policy", None) or m.__dict__.get("mixed_precision")  # FSDP1
        dtype = getattr(policy, "param_dtype", None)
        if isinstance(dtype, torch.dtype):
            return dtype
    return None


def _parameter_dtype(modules: list[nn.Module]) -> torch.dtype | None:
    for module in modules:
        for parameter in module._parameters.values():
            if parameter is not None and parameter.is_floating_point():
                return parameter.dtype
    return None


class _FrozenState:
    """The frozen values of a list of modules: flags, and one clone of every buffer."""

    def __init__(self, modules: list[nn.Module], eager: bool) -> None:
        self.modules, self.eager = modules, eager
        # Eval-mode BatchNorm keeps its running statistics for backward by reference: a later train-mode forward
        # would overwrite them, without an error, and the penalty's gradient would be wrong.
        self.buffers = [
            (m, {name: None if b is None else b.detach().clone() for name, b in m._buffers.items()})
            for m in modules
            if m._buffers
        ]

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Put the frozen values in place, and the modules' own ones back on leaving."""
        undo: list[Callable[[], None]] = []
        try:
            for m in self.modules:
                self._freeze(m, undo)
            for m, clones in self.buffers:
                undo.append(_setter(m.__dict__, "_buffers", m._buffers))
                m.__dict__["_buffers"] = dict(clones)
            yield
        finally:
            for restore in reversed(undo):
                restore()

    def _freeze(self, m: nn.Module, undo: list[Callable[[], None]]) -> None:
        values = m.__dict__
        if isinstance(m, nn.RNNBase):  # cuDNN's RNN backward needs train mode, so its dropout goes instead
            frozen: dict[str, Any] = {"training": True, "dropout": 0.0}
        else:  # the flag, not eval(): an overridden train() may edit weights, as LoRA's merge does
            frozen = {"training": False}
        if "_original_forward" in values:  # Accelerate's mixed precision enters autocast inside model.forward
            frozen["forward"] = values["_original_forward"]
        if self.eager and m._compiled_call_impl is not None:  # m.compile(), in place
            frozen["_compiled_call_impl"] = None
        for name, value in frozen.items():
            if name in values and values[name] != value:  # OptimizedModule has no flag of its own
                undo.append(_setter(values, name, values[name]))
                values[name] = value


def _setter(target: dict[str, Any], name: str, value: Any) -> Callable[[], None]:
    return lambda: target.__setitem__(name, value)


@contextlib.contextmanager
def _no_autocast() -> Iterator[None]:
    # Rounding to bfloat16 makes the quotient of a close pair many times too large.
    with contextlib.ExitStack() as stack:
        for device in ("cpu", "cuda", "xpu", "mps"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


@contextlib.contextmanager
def _checkpoints_recompute_under(state: _FrozenState) -> Iterator[None]:
    # A non-reentrant checkpoint runs its forward again during backward, when the modules are back in train mode:
    # its recomputation is wrapped so that it sees the frozen state again. Under torch.func.jvp it cannot recompute at
    # all (another number of tensors is saved), so in the limit it keeps its activations.
    original = torch.utils.checkpoint._checkpoint_hook

    class Hook(original):  # type: ignore[misc, valid-type]
        def __init__(self, frame: Any) -> None:
            recompute = frame.recompute_fn

            def recompute_frozen(*args: Any) -> None:
                with state.applied():
                    recompute(*args)

            frame.recompute_fn = recompute_frozen
            super().__init__(frame)

    replacement = contextlib.nullcontext if state.eager else Hook
    torch.utils.checkpoint._checkpoint_hook = replacement  # type: ignore[assignment, misc]
    try:
        yield
    finally:
        torch.utils.checkpoint._checkpoint_hook = original  # type: ignore[misc]
