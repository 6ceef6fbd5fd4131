"""What a model is made of: wrappers, modules, training flags, dtype."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from torchlipreg.model.norms.batchnorm import tracks_batches
from torchlipreg.model.parts.search import find_modules

STOCHASTIC_RATES = frozenset(  # nn.Dropout, nn.LSTM and nn.MultiheadAttention, timm's DropPath and heads, transformers
    ("p", "dropout", "drop_prob", "drop_rate", "dropout_rate", "dropout_p", "drop_path_rate", "layerdrop")
)
HOLDS_ONE = frozenset(("module", "_forward_module", "_orig_mod"))  # what wrappers call the model inside
AUTOCAST_DEVICES = ("cpu", "cuda", "xpu", "mps")
_UNREGISTERED: WeakKeyDictionary[nn.Module, WeakSet[nn.Module]] = WeakKeyDictionary()  # modules that models also run
REFUSED = (torch.jit.ScriptModule, LazyModuleMixin)  # whose state cannot be held, or is not there yet


class AsFound(NamedTuple):
    """The model as the training loop has it: where its forward may differ from the fixed function.

    Attributes:
        inexact: Dropout, stochastic depth or BatchNorm is in train mode.
        training: The training flag of each module.
        model: Which model it is: its first module that is no Sequential, None without one; another at the place of one
            that is no more is not equal.
        autocast: Types of the devices for which autocast was on.
    """

    inexact: bool
    training: list[bool]
    model: weakref.ref[nn.Module] | None
    autocast: list[str]

    def with_module(self, m: nn.Module) -> AsFound:
        """Return what is found with one more module."""
        inexact = self.inexact or _differs_in_training(m)
        return self._replace(inexact=inexact, training=[*self.training, m.training])


def unwrap(model: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    """Return what a penalty may call: without wrappers of DDP and the like, but in those of compile and FSDP.

    Extra forwards through DDP's wrapper would break its gradient reduction (silently so with ``static_graph``);
    FSDP in contrast must be entered through its outermost ``__call__``, which gathers the parameters.
    """
    inner = compiled_module(model)
    if inner is not None and unwrap(inner) is not inner:  # compile(DDP(m)): the graph holds the wrapper
        return unwrap(inner)
    if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        return unwrap(model.module)
    fabric = inside_fabric(model)
    return model if fabric is model else unwrap(fabric)


def inside_fabric(model: Callable[..., Any]) -> Callable[..., Any]:
    """Return what Lightning Fabric's wrapper holds, with DDP or FSDP around it; the model itself without one.

    The wrapper's forward enters autocast and puts hooks on the outputs that refuse a backward outside of
    ``fabric.backward``, so also the ascent's.
    """
    if isinstance(model, nn.Module) and type(model).__name__ == "_FabricModule":  # of two packages, none imported here
        return model._modules.get("_forward_module") or model
    return model


def is_wrapper(m: nn.Module) -> bool:
    """Say whether a module is one that :func:`unwrap` goes inside of."""
    children = m._modules
    return bool(children) and not HOLDS_ONE.isdisjoint(children) and unwrap(m) is not m


def compiled_module(model: Callable[..., Any]) -> nn.Module | None:
    """Return the module inside the wrapper of ``torch.compile``, None without one."""
    # Not by getattr(): where there is none, Module.__getattr__ composes an error message first.
    return model._modules["_orig_mod"] if isinstance(model, nn.Module) and "_orig_mod" in model._modules else None


def has_own_mode(m: nn.Module) -> bool:
    """Say whether a module does something of its own in ``train()`` or ``eval()``."""
    return type(m).train is not nn.Module.train or type(m).eval is not nn.Module.eval


def runs_compiled(model: Callable[..., Any]) -> bool:
    """Say whether a model is in the wrapper of ``torch.compile``, or was compiled in place by ``m.compile()``."""
    return compiled_module(model) is not None or getattr(model, "_compiled_call_impl", None) is not None


def all_modules(*callables: Callable[..., Any]) -> list[nn.Module]:
    """Return each module that a model, or several callables, are or use, submodules included, once."""
    found: dict[nn.Module, None] = {}
    for f in map(unwrap, callables):
        for root in [f] if isinstance(f, nn.Module) else find_modules(f):
            _walk(root, found)
            for m in _UNREGISTERED.get(compiled_module(root) or root, ()) if _UNREGISTERED else ():
                _walk(m, found)
    return list(found)


def remember_unregistered(root: Any, module: nn.Module) -> None:
    """Remember a module that a model runs, but does not register."""
    if isinstance(root, nn.Module):
        _UNREGISTERED.setdefault(compiled_module(root) or root, WeakSet()).add(module)


def submodules(module: nn.Module) -> list[nn.Module]:
    """Return a module and those below it, each once."""
    found: dict[nn.Module, None] = {}
    _walk(module, found)
    return list(found)


def _walk(module: nn.Module, found: dict[nn.Module, None]) -> None:
    """Add a module and its submodules in the order of ``module.modules()``, which takes 5 times as long."""
    found[module] = None
    for child in module._modules.values():
        if child is not None and child not in found:
            _walk(child, found)


def is_on_cudnn(m: nn.Module) -> bool:
    """Say whether a recurrent layer may run on cuDNN: it has parameters on a GPU."""
    return any(p is not None and p.is_cuda for p in m._parameters.values())


def compute_dtype(model: Callable[[Tensor], Any], x: Tensor) -> torch.dtype:
    """Return the dtype in which the fixed function computes: that of the parameters, or float32 or more without.

    Under FSDP's own mixed precision it is the policy's: parameters are gathered in it, and that cannot be switched off.
    """
    modules = all_modules(model)
    return _sharding_dtype(modules) or parameter_dtype(modules) or torch.promote_types(x.dtype, torch.float32)


def as_found(modules: list[nn.Module]) -> AsFound:
    """Describe how modules in training may differ from the fixed function. Reads Python attributes only."""
    return AsFound(
        any(map(_differs_in_training, modules)),
        [m.training for m in modules],
        next(
            (weakref.ref(m) for m in modules if type(m) is not nn.Sequential), None
        ),  # which may be made anew for each call
        [device for device in AUTOCAST_DEVICES if torch.is_autocast_enabled(device)],
    )


def _differs_in_training(m: nn.Module) -> bool:
    return m.training and (tracks_batches(m) or _is_stochastic(m))


def _is_stochastic(m: nn.Module) -> bool:
    own = m.__dict__
    if not STOCHASTIC_RATES.isdisjoint(own) and any(_is_positive(own.get(name)) for name in STOCHASTIC_RATES):
        return True
    # Of transformers' speech models; whatever else a user may call so.
    return "config" in own and _is_positive(getattr(own["config"], "__dict__", {}).get("layerdrop"))


def _is_positive(rate: Any) -> bool:
    return isinstance(rate, (int, float)) and rate > 0


def _sharding_dtype(modules: list[nn.Module]) -> torch.dtype | None:
    for m in modules:
        state = getattr(m, "_get_fsdp_state", lambda: None)()  # FSDP2
        policy = getattr(state, "_mp_policy", None) or m.__dict__.get("mixed_precision")  # FSDP1
        dtype = getattr(policy, "param_dtype", None)
        if isinstance(dtype, torch.dtype):
            return dtype
    return None


def has_parameters(module: nn.Module) -> bool:
    """Say whether a module or one below it has a parameter."""
    return any(p is not None for m in submodules(module) for p in m._parameters.values())


def parameters_by_id(modules: Iterable[nn.Module]) -> dict[int, tuple[str, Tensor]]:
    """Return each parameter by its id, with a name: the type of its module, and what that calls it."""
    held = ((m, name, p) for m in modules for name, p in m._parameters.items() if p is not None)
    return {id(p): (f"{type(m).__name__}.{name}", p) for m, name, p in held}


def parameter_dtype(modules: Iterable[nn.Module]) -> torch.dtype | None:
    """Return the dtype of the first floating parameter, None without one."""
    for module in modules:
        for parameter in module._parameters.values():
            if parameter is not None and parameter.is_floating_point():
                return parameter.dtype
    return None
