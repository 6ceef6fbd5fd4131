"""Data parallelism: averaged gradients are those of one process that holds the pairs of all ranks."""

from __future__ import annotations

import contextlib
import copy
import math
from functools import partial

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
from torch.nn.parallel import DistributedDataParallel as DDP

WRAPPERS = {
    "plain": DDP,
    "static_graph": lambda m: DDP(m, static_graph=True),
    "find_unused": lambda m: DDP(m, find_unused_parameters=True),
    "inside_compile": lambda m: torch.compile(DDP(m), backend="aot_eager"),
    "outside_compile": lambda m: DDP(torch.compile(m, backend="aot_eager")),
}


def train(rank, wrapper, method, norm, order, steps=2, give_outputs=True, aux=None, sizes=None):
    """Take steps and hold each averaged gradient against the union's."""
    net = Net(norm, aux).double()
    model = WRAPPERS[wrapper](net)
    penalty = build(method)
    for step in range(steps):
        x = batch(rank, step, sizes and sizes[step][rank])
        before = copy.deepcopy(net)  # of the uncompiled net, with the buffers before the task's forward
        net.zero_grad()
        if order == "penalty first":
            value = penalty(model, x)
            task = task_loss(model(x)) if len(x) else model(x).sum()
        else:
            y = model(x)
            task = task_loss(y) if len(y) else y.sum()
            before.load_state_dict(net.state_dict())
            value = penalty(model, x, y if give_outputs else None)
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


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("wrapper", WRAPPERS)
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


def count_collectives(rank, method):
    model, penalty, calls = DDP(Net("batch").double()), build(method), []
    names = [n for n in dir(dist) if n.startswith(("all_", "broadcast", "reduce", "gather", "scatter", "barrier"))]
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            original = getattr(dist, name)
            if callable(original):
                patch.setattr(dist, name, partial(lambda f, *a, **k: (calls.append(a), f(*a, **k))[1], original))
        counts = []
        for step in range(5):
            y = model(x := batch(rank, step))
            calls.clear()
            penalty(model, x, y)
            counts.append(len(calls))
            assert all(a[1].numel() <= 3 for a in calls)
    return counts


@pytest.mark.parametrize("method", METHODS)
def test_one_collective_of_a_few_numbers_per_step(pool, method):
    for counts in pool.run(count_collectives, method):
        assert counts[0] <= 3
        assert counts[1:] == [1] * 4
