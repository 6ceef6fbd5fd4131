"""What a step costs besides time: floating-point operations and memory."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakIdKeyDictionary


def operations_and_memory(run, device):
    """Return a call's floating-point operations, and the most bytes that are alive at a time, weights included."""
    if device == "cpu":
        with Operations() as operations, LiveBytes() as live:
            run()
        return operations.total, live.peak
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    with Operations() as operations:
        run()
    torch.cuda.synchronize()
    return operations.total, torch.cuda.max_memory_allocated()


class Operations(TorchDispatchMode):
    """Adds up the floating-point operations of matrix products, convolutions and attention, by PyTorch's own formulas.

    FlopCounterMode, which also tells modules apart, refuses autograd.grad with respect to a leaf.
    """

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        count = flop_registry.get(func.overloadpacket)
        self.total += count(*args, **(kwargs or {}), out_val=result) if count else 0
        return result


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages that are alive and take part: what an allocator would hold.

    What a kernel allocates and frees within itself is not seen.
    """

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._seen = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, result)):
            if isinstance(leaf, torch.Tensor) and leaf.untyped_storage() not in self._seen:
                self._add(leaf.untyped_storage())
        self.peak = max(self.peak, self.now)
        return result

    def _add(self, storage):
        self._seen[storage] = True
        self.now += storage.nbytes()
        weakref.finalize(storage, self._remove, storage.nbytes())

    def _remove(self, size):
        self.now -= size
