"""How long functions take, one beside another."""

import statistics
import time

import torch


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
