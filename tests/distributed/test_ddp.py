"""Data parallelism: averaged gradients are those of one process that holds the pairs of all ranks."""

from __future__ import annotations

import contextlib
import copy
import math

import pytest
import torch
import torch.distributed as dist
from data_parallel import (
    METHODS,
    Net,
    assert_equal,
    assert_same_on_all_ranks,
    average,
    batch,
    build,
    gather,
    local_task_gradient,
    task_loss,
    union_gradient,
)
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.algorithms.join import Join
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WRAPPERS = {
    "plain": DDP,
    "static_graph": lambda m: DDP(m, static_graph=True),
    "find_unused": lambda m: DDP(m, find_unused_parameters=True),
    "inside_compile": lambda m: torch.compile(DDP(m), backend="aot_eager"),
    "outside_compile": lambda m: DDP(torch.compile(m, backend="aot_eager")),
}


def train(rank, wrapper, method, norm, order, steps=2, give_outputs=True, aux=None, sizes=None, as_function=False):
    """Take steps and hold each averaged gradient against the union's."""
    net = Net(norm, aux).double()
    model = WRAPPERS[wrapper](net)
    f = (lambda z: model(z)) if as_function else model
    penalty = build(method)
    for step in range(steps):
        x = batch(rank, step, sizes and sizes[step][rank])
        before = copy.deepcopy(net)  # of the uncompiled net, with the buffers before the task's forward
        net.zero_grad()
        if order == "penalty first":
            value = penalty(f, x)
            task = task_loss(model(x)) if len(x) else model(x).sum()
        else:
            y = model(x)
            task = task_loss(y) if len(y) else y.sum()
            before.load_state_dict(net.state_dict())
            value = penalty(f, x, y if give_outputs else None)
        (task + value).backward()
        got = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in net.parameters()]
        expected_value, expected_estimate, of_penalty = union_gradient(
            before, penalty, len(x) or method in ("max", "sum"), x
        )
        of_task = average(local_task_gradient(before, x) if len(x) else [torch.zeros_like(g) for g in got])
        assert_equal([value, penalty.estimate], [expected_value, expected_estimate])
        assert_equal(got, [a + b for a, b in zip(of_task, of_penalty, strict=True)])
        assert_same_on_all_ranks(value.detach())
        assert_same_on_all_ranks(penalty.estimate)
        with torch.no_grad():
            for p, g in zip(net.parameters(), got, strict=True):
                p -= 0.1 * g
                assert_same_on_all_ranks(p.detach())


@pytest.mark.parametrize("method", ["tv", "max"])
@pytest.mark.parametrize("wrapper", ["plain", "static_graph"])
def test_through_a_function_around_the_wrapper(two, wrapper, method):
    for norm in ("batch", "group"):
        two.run(train, wrapper, method, norm, "task first", 3, True, None, None, True)


def train_on_lengths(rank, give_outputs):
    """Sequences padded to the longest of each rank's own batch."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(4, 8), nn.Tanh(), nn.AdaptiveAvgPool2d((1, 8)), nn.Flatten(), nn.Linear(8, 3)
    ).double()
    model, penalty, twin = DDP(net), build("tv"), build("tv")
    for step, length in enumerate([[5, 5, 5, 5], [5, 7, 6, 5]][rank]):
        generator = torch.Generator().manual_seed(10 * step + rank)
        x = torch.randn(8, length, 4, generator=generator, dtype=torch.float64)
        y = model(x)
        values = penalty(model, x, y if give_outputs else None), twin(net, x)
        assert_equal([values[0]], [values[1]])
        assert_same_on_all_ranks(values[0].detach())
        (task_loss(y) + values[0]).backward()


@pytest.mark.parametrize("give_outputs", [True, False])
def test_shapes_may_differ_between_ranks_and_change(two, give_outputs):
    two.run(train_on_lengths, give_outputs)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "wrapper", [pytest.param(name, marks=pytest.mark.compiler if "compile" in name else ()) for name in WRAPPERS]
)
def test_gradient_is_that_of_one_process_with_all_pairs(two, wrapper, method):
    for norm in ("batch", "group"):
        two.run(train, wrapper, method, norm, "task first")


@pytest.mark.parametrize("method", METHODS)
def test_three_unequal_ranks(pools, method):
    pools[3].run(train, "plain", method, "group", "task first")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("order", ["penalty first", "without outputs"])
def test_any_order_of_terms(two, method, order):
    two.run(train, "plain", method, "batch", order, 2, False)


def accumulate(rank, method):
    net = Net("group").double()
    model, penalty = DDP(net), build(method)
    expected = [torch.zeros_like(p) for p in net.parameters()]
    for micro_step in range(3):
        x = batch(rank, micro_step)
        with model.no_sync() if micro_step < 2 else contextlib.nullcontext():
            y = model(x)
            ((task_loss(y) + penalty(model, x, y)) / 3).backward()
        terms = average(local_task_gradient(net, x)), union_gradient(net, penalty)[2]
        expected = [e + (a + b) / 3 for e, a, b in zip(expected, *terms, strict=True)]
    assert_equal([p.grad for p in net.parameters()], expected)


@pytest.mark.parametrize("method", METHODS)
def test_accumulation_under_no_sync(two, method):
    two.run(accumulate, method)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sizes", [[(5, 8), (5, 0)], [(3, 2), (4, 1)], [(5, 5), (0, 3)]], ids=str)
def test_ragged_and_empty_last_batches(two, sizes, method):
    two.run(train, "plain", method, "group", "task first", 2, True, None, sizes)


def start_empty(rank, method):
    model, penalty = DDP(Net("group").double()), build(method)
    x = batch(rank, size=4 * rank)
    if method in ("max", "sum"):
        with pytest.raises((ValueError, RuntimeError), match=("another rank", "data points")[rank == 0]):
            penalty(model, x)
        return
    value = penalty(model, x, model(x))
    (value + model(x).sum()).backward()
    assert value > 0
    assert_same_on_all_ranks(value.detach())
    assert_same_on_all_ranks(penalty(model, x, update=False).detach() - value.detach())


@pytest.mark.parametrize("method", METHODS)
def test_first_batch_of_a_rank_is_empty(two, method):
    two.run(start_empty, method)


def refuse_values(rank, spoilt):
    model, penalty = DDP(Net("group").double()), build("tv")
    x = batch(rank)
    if rank == spoilt:
        x[0] = math.nan
    with pytest.raises((ValueError, RuntimeError), match=("another rank", "NaN")[rank == spoilt]):
        penalty(model, x)


def test_a_refusal_on_one_rank_reaches_all(two):
    two.run(refuse_values, 1, timeout=20)


def branch_in_one_mode(rank, wrapper, mode, give_outputs=True):
    train(rank, wrapper, "tv", "group", "task first", 3, give_outputs, mode)


@pytest.mark.parametrize("wrapper", ["static_graph", "find_unused"])
def test_a_branch_that_only_training_uses(two, wrapper):
    two.run(branch_in_one_mode, wrapper, "train")


@pytest.mark.parametrize("wrapper", ["static_graph", "plain"])
def test_a_branch_that_only_evaluation_uses(two, wrapper):
    two.run(branch_in_one_mode, wrapper, "eval")


def refuse_branch(rank):
    model = DDP(Net("group", "eval").double(), find_unused_parameters=True)
    penalty, x = build("tv"), batch(rank)
    with pytest.raises(RuntimeError, match=r"aux\.weight.*static_graph"):
        penalty(model, x, model(x))


def test_find_unused_and_a_branch_that_only_evaluation_uses(two):
    two.run(refuse_branch)


def sync_batch_norm(rank):
    net = Net("batch").double()
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(net))  # its train-mode forward needs a GPU
    x = batch(rank)
    assert torch.equal(build("tv")(synced, x), build("tv")(net, x))
    assert synced.training


def test_sync_batch_norm(two):
    two.run(sync_batch_norm)


def draw(rank, method):
    x = batch(0)
    penalty = build(method)
    penalty(Net("group").double(), x)
    ours, theirs = gather(penalty.pairs.x_prime)
    assert not torch.equal(ours, theirs)


@pytest.mark.parametrize("method", METHODS)
def test_ranks_draw_different_pairs_from_one_seed(two, method):
    two.run(draw, method)


class Collectives(TorchDispatchMode):
    """Notes, for each collective that starts inside, the bytes that this rank gives, and those of all it touches."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace in ("c10d", "_c10d_functional"):
            self.seen.append([t.nbytes for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)])
        return func(*args, **(kwargs or {}))


def large_net():
    blocks = [nn.Sequential(nn.Linear(n, 256), nn.BatchNorm1d(256), nn.Tanh()) for n in (16, 256, 256, 256)]
    return nn.Sequential(nn.Flatten(), *blocks, nn.Linear(256, 100))


def count_collectives(rank, method, size):
    """Return, step by step, what the penalty's call gathers and what the backward reduces, with and without it."""
    model = DDP((Net("batch") if size == "tiny" else large_net()).double(), bucket_cap_mb=0.5)
    buckets = []

    def hook(state, bucket):
        buckets.append(bucket.buffer().nbytes)
        return default_hooks.allreduce_hook(state, bucket)

    model.register_comm_hook(None, hook)
    penalty, steps = build(method), []
    for step in range(5):
        task_loss(model(x := batch(rank, step))).backward()
        without, buckets = buckets, []
        y = model(x)
        with Collectives() as calls:
            value = penalty(model, x, y)
        (task_loss(y) + value).backward()
        steps.append((calls.seen, buckets, without))
        buckets = []
    return steps


@pytest.mark.parametrize("size", ["tiny", "large"])
@pytest.mark.parametrize("method", METHODS)
def test_one_collective_of_a_few_numbers_per_step(pool, method, size):
    largest = 3 * 8  # bytes: three numbers, of float64 here
    for steps in pool.run(count_collectives, method, size):
        first, *later = [gathered for gathered, _, _ in steps]
        assert len(first) <= 3  # the first look at batch and model
        assert [len(gathered) for gathered in later] == [1] * 4
        for table, row in first + [call for gathered in later for call in gathered]:
            assert row <= largest
            assert table == pool.size * row
        for _, with_penalty, without in steps[1:]:  # DDP settles its buckets in the first
            assert with_penalty == without  # the gradients of both terms travel together
            assert without


def gather_twice(rank):
    with Collectives() as calls:
        dist.all_reduce(torch.zeros(2))
        gather(torch.zeros(10))
    return [sum(sizes) for sizes in calls.seen]


def test_the_count_sees_every_collective(two):
    for seen in two.run(gather_twice):
        assert len(seen) == 3  # objects travel with their sizes ahead
        assert seen[0] == 8
        assert seen[2] > 2 * 40


def normalised_run(rank, method):
    """Take steps on normalised data; return the values, which have to be those of raw data."""
    values = []
    for normalization in ((0.3, 0.2), None):
        net = Net("group").double()
        model = DDP(net if normalization else Raw(net))
        penalty, found = build(method, normalization=normalization), []
        for step in range(2):
            x = batch(rank, step)
            z = (x - 0.3) / 0.2 if normalization else x
            value = penalty(model, z, model(z))
            (task_loss(model(z)) + value).backward()
            found.append(value.detach())
        values.append(torch.stack(found))
    assert_same_on_all_ranks(values[0])
    torch.testing.assert_close(*values, rtol=1e-9, atol=0)


class Raw(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net((x - 0.3) / 0.2)


@pytest.mark.parametrize("method", METHODS)
def test_raw_units_on_two_processes(two, method):
    two.run(normalised_run, method)


def join(rank):
    model = DDP(Net("none"))
    with Join([model]):
        with pytest.raises(RuntimeError, match=r"join\(\) cannot take a penalty"):
            build("tv")(model, batch(rank, 0).float())


def test_join_is_refused(two):
    two.run(join)


class Speaking(nn.Module):
    """A forward that is a collective."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, x):
        mean = x.detach().mean().nan_to_num()
        dist.all_reduce(mean)
        return self.linear(x) + 0 * mean


def first_calls(rank, method, sizes):
    net, x, penalty = Speaking(), torch.randn(sizes[rank], 6), build(method)
    for _ in range(2):
        penalty(net, x)


@pytest.mark.parametrize("sizes", [(8, 1), (2, 0)], ids=str)
def test_the_first_look_takes_as_many_forwards_on_every_rank(two, sizes):
    two.run(first_calls, "tv", sizes)
