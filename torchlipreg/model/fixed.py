"""The model as a fixed function of its input, leaving no trace: wrappers, flags, buffers, precision."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from torchlipreg.checks import check_callable
from torchlipreg.geometry.units import Units
from torchlipreg.model.frozen import FrozenState
from torchlipreg.model.function import FixedFunction
from torchlipreg.model.internals.recomputation import recomputing_under
from torchlipreg.model.internals.switches import (
    checkpoint_hook,
    float32_products,
    forward_mode_kernels,
    no_cached_weights,
    one_path_of_attention,
)
from torchlipreg.model.parts.modules import (
    REFUSED,
    all_modules,
    compiled_module,
    parameter_dtype,
    runs_compiled,
    unwrap,
)
from torchlipreg.model.parts.parallelism import check_forward_mode


@contextlib.contextmanager
def fixed_function(
    model: Callable[..., Any],
    output: Callable[[Any], Any] | None = None,
    *,
    eager: bool = False,
    units: Units | None = None,
    kwargs: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
    stateful: bool = True,
    noise_seed: int | None = None,
    apart: bool = False,
    double: bool = False,
    meet: bool = False,
) -> Iterator[FixedFunction]:
    """Give the model as a fixed, deterministic function of its input for the length of the context.

    Inside, BatchNorm uses its running statistics, Dropout and stochastic depth are off, autocast is off (Accelerate's
    included), buffers are clones and gradient checkpoints recompute in the same state. Everything is restored on
    leaving, also after an exception. Graphs that are built inside stay right for a later backward. Where BatchNorm is
    being trained, :meth:`FixedFunction.follow_statistics` completes the gradient.

    Args:
        model: Function, ``nn.Module``, or one wrapped in DDP, DataParallel, FSDP or ``torch.compile``. The modules
            that a plain function or lambda uses are found by :func:`torchlipreg.model.parts.search.find_modules`.
        output: From the model's return value to the tensor that counts; default ``default_output``.
        eager: Step around ``torch.compile``, for transforms that it does not support (``torch.func.jvp``).
        units: The normalisation that the loop has applied to raw inputs: f then takes raw ones.
        kwargs: What else the model takes by name, the same for any part of the batch.
        batch_size: How many points the loop's batch has, for an error message.
        stateful: Let each forward start from the same, because one leaves something that the next would read.
        noise_seed: Seed of the random numbers that each forward draws, the same for all; None if it draws none.
        apart: x and x′ need forwards of their own, so that the same random numbers meet the same rows.
        double: Compute in float64, without gradients to the parameters, of which it makes copies.
        meet: Freeze unregistered modules when they first run, even where the search for them seems complete; of a
            compiled model take the module inside.

    Raises:
        TypeError: If the model is not callable, or scripted.
        ValueError: If a lazy module has no parameters yet.
        RuntimeError: If ``eager`` is asked of a model in FSDP1.

    Yields:
        A function from inputs, shape (N, *), to outputs, shape (N, *), float32 or float64. It overwrites neither
        its argument (an in-place first layer gets a copy) nor a buffer.
    """
    check_callable("model", model, hint=" The order is (model, x, outputs).")
    core = unwrap(model)
    if eager or meet:  # torch warns of global hooks on its wrapper
        core = compiled_module(core) or core
    modules = all_modules(core)
    is_compiled = any(compiled_module(m) for m in modules)
    if is_compiled and output is not None:  # elsewhere the modules of `output` are met as they run
        modules = all_modules(core, output)
    for kind in {*map(type, modules)}:
        if issubclass(kind, REFUSED):
            _refuse(kind)
    if eager:
        check_forward_mode(modules)
    state = FrozenState(core, modules, eager=eager, stateful=stateful, double=double, others=(kwargs or {}).values())
    # Under torch.func.jvp a checkpoint cannot recompute (another number of tensors is saved): it keeps activations.
    hook = contextlib.nullcontext if eager else recomputing_under(state.applied)
    with contextlib.ExitStack() as stack:
        for device in state.found.autocast:  # rounding to bfloat16 makes the quotient of a close pair far too large
            stack.enter_context(torch.autocast(device, enabled=False))
        stack.enter_context(checkpoint_hook(hook))
        stack.enter_context(one_path_of_attention.held())
        stack.enter_context(float32_products.held())
        stack.enter_context(no_cached_weights.held())
        if eager:
            stack.enter_context(forward_mode_kernels.held())
        may_hold_more = stack.enter_context(state.applied())
        if meet or not isinstance(core, nn.Module) or (may_hold_more and not any(map(runs_compiled, modules))):
            stack.enter_context(state.meeting())
        dtype = torch.float64 if double else parameter_dtype(modules)
        yield FixedFunction(core, output, dtype, state, units, kwargs or {}, batch_size, noise_seed, apart=apart)


def _refuse(kind: type) -> None:
    if issubclass(kind, torch.jit.ScriptModule):
        raise TypeError(
            "Expected argument `model` to be an nn.Module or a function, but got a scripted one, whose flags cannot be "
            "held: pass the module that it was made of, or use torch.compile."
        )
    raise ValueError(
        f"Expected argument `model` to have all its parameters, but {kind.__name__} makes them in its first "
        "forward: call the model once before the penalty."
    )
