"""What a step costs: time, floating-point operations, memory. All relative to a plain step."""

import statistics
import time
import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakIdKeyDictionary


def seconds(run, device):
    """Return how long a function takes: on a GPU by its own clock, on one core by that core's work for this process."""
    if device == "cpu":
        clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
        start = clock()
        run()
        return clock() - start
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


def interleaved(runs, device, rounds, budget, dear=()):
    """Time functions in turn, so that a busy machine slows all of them alike.

    Args:
        runs: Name -> function.
        device: "cpu" or "cuda".
        rounds: How many at most.
        budget: Seconds after which no further round begins; three are made in any case.
        dear: Names that take part in every fourth round only.

    Returns:
        Name -> seconds in each round, None where it took no part.
    """
    names, times = list(runs), {name: [] for name in runs}
    end = time.perf_counter() + budget
    for number in range(rounds):
        if number >= 3 and time.perf_counter() > end:
            break
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            takes_part = name not in dear or number % 4 == 0
            times[name].append(seconds(runs[name], device) if takes_part else None)
    return times


def quartiles(values):
    """Return the lower quartile, the median and the upper quartile."""
    values = [v for v in values if v is not None]
    return statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3


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
