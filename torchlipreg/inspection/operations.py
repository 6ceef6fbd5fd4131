"""Operations: what those of a forward show: half precision, random numbers, statistics, writes that last."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from torchlipreg.geometry.units import HALF
from torchlipreg.model.function import FixedFunction
from torchlipreg.model.parts.modules import all_modules

FLOAT8 = tuple(getattr(torch, name) for name in dir(torch) if name.startswith("float8_"))
NARROW = (*HALF, *FLOAT8, torch.complex32)
ROUNDED = (*NARROW, torch.float32, torch.complex64)
ROUNDING = 1e-5  # relative: what a constraint on weights, set once more, changes by
ENOUGH = 32  # writes that are looked at closely


@contextlib.contextmanager
def observing(f: FixedFunction, *observers: TorchDispatchMode) -> Iterator[None]:
    """Let observers see each operation of the forwards inside, which run eagerly; where FSDP shards, they see none."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(f.eagerly())
        for observer in () if f.state.is_sharded else observers:
            stack.enter_context(observer)
        yield


class Observer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees each operation of a forward.

    Attributes:
        dtype: The half precision in which one ran, or to which float64 was rounded; None without one.
        drawn: The last one that draws random numbers; None without one.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtype: torch.dtype | None = None
        self.drawn: str | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and note its name if it draws numbers, and its dtype if that rounds."""
        result = func(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded in getattr(func, "tags", ()):
            self.drawn = str(func)
        for y in tree_leaves(result):
            if isinstance(y, Tensor) and y.dtype in ROUNDED and y.dim() and self.dtype not in NARROW:
                # A mask or a constant of float32 beside float64 is exact, and one number is what somebody logs.
                if y.dtype in NARROW or any(_is_double(t) for t in tree_leaves((args, kwargs))):
                    self.dtype = y.dtype
        return result


class Writes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees each operation of a forward that runs eagerly.

    A tensor that was written, but has kept its values, counts for nothing: clamped weights.
    """

    supports_higher_order_operators = True

    def __init__(self, private: Iterable[Tensor]) -> None:
        """Begin.

        Args:
            private: Tensors from before the forward that it may write.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self._found: list[tuple[str, StorageWeakRef]] = []
        # Addresses, because holding the tensors would keep activations alive. What was there before the forward lives
        # on throughout it, so that no tensor of the forward gets its address.
        self._own = {storage for t in private for storage in _storages(t)}

    @property
    def lasting(self) -> str | None:
        """The first operation that has changed a tensor which lives on, and the shape of that; None without one."""
        # Made by `torch.frombuffer` and the like, unseen, a tensor of the forward looks as if from before.
        return next((what for what, memory in self._found if not memory.expired()), None)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and note it if it changes what was there before the forward."""
        kwargs = kwargs or {}
        inputs = {storage for t in tree_leaves((args, kwargs)) for storage in _storages(t)}
        if func is torch.ops.aten.lift_fresh.default:  # of a tensor that torch.tensor() has just made, unseen
            self._own |= inputs
        foreign = [t for t in _written(func, args, kwargs) if self._is_foreign(t)] if len(self._found) < ENOUGH else []
        written = [(t, t.clone()) for t in foreign]
        result = func(*args, **kwargs)
        for t in (t for t, before in written if _differ(t, before)):
            memory = StorageWeakRef(t.untyped_storage())  # type: ignore[no-untyped-call]
            self._found.append((f"{func}, of shape {tuple(t.shape)}", memory))
        self._own |= {storage for y in tree_leaves(result) for storage in _storages(y)} - inputs
        return result

    def _is_foreign(self, t: Tensor) -> bool:
        return not self._own.issuperset(_storages(t))


class Reads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees which tensors operations take.

    Attributes:
        of: Whose they are.
    """

    supports_higher_order_operators = True

    def __init__(self, held: Iterable[tuple[Any, Tensor]]) -> None:
        """Begin.

        Args:
            held: Owners, as norms, and what they hold, as running statistics.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self.of: set[Any] = set()
        self._places = {storage: owner for owner, t in held for storage in _storages(t)}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and note who holds something of what it takes; a copy counts as its original."""
        result = func(*args, **(kwargs or {}))
        taken = (storage for t in tree_leaves((args, kwargs)) for storage in _storages(t))
        owners = {self._places[storage] for storage in taken if storage in self._places}
        if func is torch.ops.aten.clone.default:
            self._places |= {storage: owner for owner in owners for storage in _storages(result)}
        else:
            self.of |= owners
        return result


class Weights:
    """The parameters of a model, to which a forward may give other memory, by ``.data``, which no operation shows."""

    def __init__(self, model: Any) -> None:
        """Note where they are."""
        weights = [w for m in all_modules(model) for w in m._parameters.values() if w is not None]
        self._noted = [(w, w.detach(), _address(w)) for w in weights]

    @property
    def replaced(self) -> str | None:
        """The shape of one that has got other memory, with other values; None without one."""
        moved = ((w, before) for w, before, address in self._noted if _address(w) != address)
        return next((f"`.data` of a parameter of shape {tuple(w.shape)}" for w, b in moved if _differ(w, b)), None)


def _address(w: Tensor) -> int:
    try:
        return w.data_ptr()
    except (RuntimeError, NotImplementedError):  # of a kind that has none
        return 0


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """Return the tensors that an operation writes in place."""
    schema = getattr(func, "_schema", None)
    if schema is None or not schema.is_mutable:
        return
    for i, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[i] if i < len(args) else kwargs.get(argument.name)
            yield from (t for t in tree_leaves(value) if isinstance(t, Tensor))


def _is_double(t: Any) -> bool:
    return isinstance(t, Tensor) and t.dtype in (torch.float64, torch.complex128)


def _storages(t: Any) -> tuple[int, ...]:
    """Return the address of a tensor's memory, nothing for what has none of its own."""
    if not isinstance(t, Tensor):
        return ()
    try:
        return (t.untyped_storage()._cdata,)
    except (NotImplementedError, RuntimeError):  # sparse, or made by somebody else's C++
        return ()


def _differ(t: Tensor, before: Tensor) -> bool:
    if (t.dtype, t.device) != (before.dtype, before.device):  # cast or moved: no average of it
        return False
    if t.shape != before.shape or not t.is_floating_point():
        return not torch.equal(t, before)
    return not torch.allclose(t, before, rtol=ROUNDING, atol=0.0, equal_nan=True)
