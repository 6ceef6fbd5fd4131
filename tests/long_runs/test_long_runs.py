"""3,000 steps: memory is flat, the time of a step does not drift, values stay finite, the state does not grow.

`pytest tests/long_runs -m "" -s` prints what was measured. Minutes each. A leak of one float a step, or of 3 KiB of
tensors, is found; a crowded machine is not taken for one.
"""

import array
import gc
import io
import statistics
import time
import tracemalloc

import pytest
import torch
from torch import nn
from worker_pool import Pool

from torchlipreg import LipschitzPenalty, RadiusDecay

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
STEPS, WARM = 3000, 600
RSS = 6 << 20  # bytes that a process may grow by, between the end of the warm-up and the end
TRACED = 64 << 10  # bytes of Python objects
DRIFT = 1.5  # of the median processor time of a step, last third against first: caches are shared with others


def resident():
    """Bytes of this process in memory."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * 4096
    except OSError:
        pytest.skip("no /proc on this system")


def size_of(state):
    """Bytes of a state as it is saved."""
    file = io.BytesIO()
    torch.save(state, file)
    return file.tell()


class Watch:
    """Looks at the process now and then, and at the time of each step."""

    def __init__(self):
        self.seconds, self.count = array.array("d", bytes(8 * STEPS)), 0  # which does not grow with the steps
        self.seen, self.begun = [], time.process_time()

    def step(self, i, value, state):
        self.seconds[self.count] = time.process_time() - self.begun
        self.count += 1
        if not torch.isfinite(value):
            raise AssertionError(f"step {i}: {value}")
        if i == WARM // 2:
            tracemalloc.start()
        if i >= WARM and (i - WARM) % 400 == 0:
            gc.collect()
            self.seen.append((i, resident(), tracemalloc.get_traced_memory()[0], size_of(state())))
        self.begun = time.process_time()

    def close(self):
        tracemalloc.stop()
        return self.seconds, self.seen


def check(seconds, seen):
    """Nothing has grown; returns what there is to tell."""
    first, last = seen[0], seen[-1]
    third = (len(seconds) - WARM) // 3
    thirds = [statistics.median(seconds[WARM + k * third : WARM + (k + 1) * third]) for k in range(3)]
    told = (
        f"RSS {(last[1] - first[1]) / 2**20:+.2f} MiB, traced {(last[2] - first[2]) / 2**10:+.1f} KiB, "
        f"state {first[3]} to {last[3]} bytes, ms a step {[round(1e3 * t, 2) for t in thirds]}"
    )
    print(told)
    assert last[1] - first[1] < RSS, told
    assert last[2] - first[2] < TRACED, told
    # A counter may need another byte
    assert max(s[3] for s in seen) - min(s[3] for s in seen) <= 512, told
    assert thirds[2] < DRIFT * thirds[0], told


def net_of(*, batch_norm):
    torch.manual_seed(0)
    norm = [nn.BatchNorm1d(16)] if batch_norm else []
    return nn.Sequential(nn.Linear(6, 16), *norm, nn.ReLU(), nn.Linear(16, 3))


def train(net, penalty, steps=STEPS, start=0, watch=None, model=None, ragged=False, each_epoch=None):
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-2)
    rows = torch.Generator()
    for i in range(start, start + steps):
        x = torch.randn(2 + i % 15 if ragged else 16, 6, generator=rows.manual_seed(i))
        model = model or net
        out = model(x)
        loss = (out - x[:, :3].tanh()).square().mean() + penalty(model, x, out)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if each_epoch is not None and i % 100 == 99:
            each_epoch()
        if watch is not None:
            watch.step(i, loss.detach(), penalty.state_dict)


def test_max_with_batch_norm():
    watch, net = Watch(), net_of(batch_norm=True)
    penalty = LipschitzPenalty("max", 0.01, num_pairs=16)
    train(net, penalty, watch=watch)
    check(*watch.close())


@pytest.mark.filterwarnings("ignore:`radius`=")  # it falls under what float32 resolves: the limit is what is meant
def test_tv_with_a_radius_that_decays_to_the_limit():
    watch, net = Watch(), net_of(batch_norm=True)
    penalty = LipschitzPenalty("tv", 0.05, radius=0.1, scale=0.1)
    radius = RadiusDecay(penalty, gamma=0.2)  # the limit is reached within the warm-up
    train(net, penalty, watch=watch, each_epoch=radius.step)
    assert 0 < penalty.radius < 1e-6
    check(*watch.close())


@pytest.mark.compiler
def test_tv_compiled_with_ragged_batches():
    torch._dynamo.reset()
    watch, net = Watch(), net_of(batch_norm=False)
    train(net, LipschitzPenalty("tv", 0.05), watch=watch, model=torch.compile(net), ragged=True)
    torch._dynamo.reset()
    check(*watch.close())


def on_a_rank(rank, resumes):
    """Train in data parallel; in the middle save all, throw it away, and load it."""
    from torch.nn.parallel import DistributedDataParallel as DDP

    def begin(seed):
        torch.manual_seed(seed)
        net = net_of(batch_norm=False)
        return net, DDP(net), LipschitzPenalty("max", 0.01, num_pairs=8)

    net, model, penalty = begin(0)
    watch = Watch()
    if not resumes:
        train(net, penalty, watch=watch, model=model)
    else:
        train(net, penalty, STEPS // 2, watch=watch, model=model)
        penalty.synchronize()
        file = io.BytesIO()
        torch.save({"net": net.state_dict(), "penalty": penalty.state_dict()}, file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        net, model, penalty = begin(1)
        net.load_state_dict(saved["net"])
        penalty.load_state_dict(saved["penalty"])
        watch.seen.clear()  # another net, and what saving and loading import: what follows is to be flat
        train(net, penalty, STEPS - STEPS // 2, start=STEPS // 2, watch=watch, model=model)
    return *watch.close(), torch.cat([p.detach().flatten() for p in net.parameters()])


@pytest.mark.distributed
def test_two_processes_with_a_resume_in_the_middle():
    ends = []
    for resumes in (True, False):
        pool = Pool(2)
        try:
            results = pool.run(on_a_rank, resumes, timeout=900)
        finally:
            pool.stop()
        for seconds, seen, _ in results:
            check(seconds, seen)
        ends.append(results[0][2])
    torch.testing.assert_close(*ends, rtol=0, atol=0)
