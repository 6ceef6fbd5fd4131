"""Saving on some ranks and loading on others: nothing lost, nothing doubled, nothing that waits."""

from __future__ import annotations

import io
import warnings

import pytest
import torch
import torch.distributed as dist
from data_parallel import METHODS, Net, assert_same_on_all_ranks, batch, build, gather
from torch.nn.parallel import DistributedDataParallel as DDP
from worker_pool import Pool

PERSISTENT = ["max", "sum"]


def advance(penalty, net, rank, steps, start=0):
    return [penalty(net, batch(rank, start + step)) for step in range(steps)]


def store(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def rows(state):
    """All saved pairs, ascent state included, as a sorted list of rows."""
    columns = []
    for r in state["ranks"]:
        sets = [r["pairs"], *r["ascent"].values()]
        columns.append(torch.cat([z.flatten(1) for s in sets for z in (s["x"], s["x_prime"])], 1))
    return sorted(torch.cat(columns).tolist())


def save(rank, method):
    penalty = build(method)
    advance(penalty, Net("group").double(), rank, 3)
    penalty.synchronize()
    return store(penalty.state_dict())


def load_and_save(rank, method, state, steps=0, num_pairs=6):
    penalty = build(method, num_pairs=num_pairs)
    penalty.load_state_dict(state)
    mine = penalty.state_dict()
    for value in advance(penalty, Net("group").double(), rank, steps, start=3):
        assert_same_on_all_ranks(value.detach())
    penalty.synchronize()
    return store(penalty.state_dict()), rows(mine)


@pytest.mark.parametrize("method", PERSISTENT)
def test_pairs_survive_another_number_of_processes(pools, method):
    saved = pools[2].run(save, method)[0]
    assert len(rows(saved)) == 12
    alone, _ = load_and_save(0, method, saved)
    on_three = pools[3].run(load_and_save, method, saved)
    again_on_two = pools[2].run(load_and_save, method, on_three[0][0])
    for state in (alone, on_three[0][0], again_on_two[1][0]):
        assert rows(state) == rows(saved)
    assert [len(mine) for _, mine in on_three] == [4, 4, 4]


@pytest.mark.parametrize("method", PERSISTENT)
def test_unequal_shares_train_on_and_are_saved_again(pools, method):
    alone = build(method, num_pairs=5)
    advance(alone, Net("group").double(), 0, 2)
    on_two = pools[2].run(load_and_save, method, store(alone.state_dict()), 2, 5)
    on_three = pools[3].run(load_and_save, method, on_two[0][0], 2, 5)
    assert [len(mine) for _, mine in on_two] == [3, 2]
    assert [len(mine) for _, mine in on_three] == [2, 2, 1]
    assert len(rows(on_three[2][0])) == 5


def more_ranks_than_pairs(rank, state):
    penalty = build("max", num_pairs=2)
    penalty.load_state_dict(state)
    held = 0 if penalty.pairs is None else len(penalty.pairs.x)
    values = advance(penalty, Net("group").double(), rank, 2)
    assert_same_on_all_ranks(values[-1].detach())
    return held, len(penalty.pairs.x)


def test_more_ranks_than_pairs(pools):
    alone = build("max", num_pairs=2)
    advance(alone, Net("group").double(), 0, 2)
    assert pools[3].run(more_ranks_than_pairs, alone.state_dict()) == [(1, 1), (1, 1), (0, 2)]


def resume(rank, method, saved_by, forget=None):
    net, uninterrupted = Net("batch").double(), build(method)
    advance(uninterrupted, net, rank, 3)
    if saved_by == "all ranks":
        uninterrupted.synchronize()
        state = uninterrupted.state_dict()
    else:
        state = gather(uninterrupted.state_dict() if rank == 0 else None)[0]
    resumed = build(method)
    if forget:
        state[forget] = 0
    resumed.load_state_dict(store(state))
    expected = advance(uninterrupted, net, rank, 2, start=3)
    got = advance(resumed, net, rank, 2, start=3)
    same = all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    return same and torch.equal(resumed.pairs.x_prime, uninterrupted.pairs.x_prime)


@pytest.mark.parametrize("method", METHODS)
def test_resume_is_bit_equal(two, method):
    assert two.run(resume, method, "all ranks") == [True, True]


@pytest.mark.parametrize("method", ["tv", "ptv", "limit"])
def test_local_methods_resume_from_a_state_of_rank_0_alone(two, method):
    assert two.run(resume, method, "rank 0") == [True, True]


def test_negative_control(two):
    assert two.run(resume, "tv", "all ranks", "calls") == [False, False]
    assert two.run(resume, "max", "rank 0") == [False, False]  # rank 1's pairs are not in it


def save_on_rank_0_alone(rank):
    penalty = build("max")
    advance(penalty, Net("group").double(), rank, 1)
    state = None
    if rank == 0:
        with pytest.warns(UserWarning, match=r"penalty\.synchronize"):
            state = store(penalty.state_dict())
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # said once
            penalty.state_dict()
    state = gather(state)[0]
    loaded = build("max")
    loaded.load_state_dict(state)
    pairs = penalty.pairs
    assert (loaded.pairs is None) == (rank == 1)  # not doubled
    advance(loaded, Net("group").double(), rank, 1, start=1)
    return len(loaded.pairs.x), len(pairs.x)


def test_saving_on_rank_0_alone_waits_for_nobody_and_warns(two):
    assert two.run(save_on_rank_0_alone, timeout=20) == [(6, 6), (6, 6)]


def save_each_rank_its_own(rank):
    penalty = build("sum")
    advance(penalty, Net("group").double(), rank, 2)
    with pytest.warns(UserWarning, match="this rank only"):
        state = store(penalty.state_dict())
    loaded = build("sum")
    loaded.load_state_dict(state)
    assert torch.equal(loaded.pairs.x, penalty.pairs.x)


def test_a_file_for_each_rank(two):
    two.run(save_each_rank_its_own)


def stale(rank):
    penalty, net = build("max"), Net("group").double()
    advance(penalty, net, rank, 1)
    penalty.synchronize()
    advance(penalty, net, rank, 1, start=1)
    assert len(penalty.state_dict()["ranks"]) == 1


def test_gathered_pairs_do_not_outlive_the_next_call(two):
    two.run(stale)


def load_then_compile_then_wrap(rank, state):
    penalty, net = build("max"), Net("group").double()
    penalty.load_state_dict(state)
    expected = penalty.pairs.x.clone()
    model = DDP(torch.compile(net, backend="aot_eager"))
    assert torch.equal(penalty.pairs.x, expected)
    x = batch(rank, 5)
    (penalty(model, x, model(x)) + model(x).sum()).backward()
    assert_same_on_all_ranks(net.conv.weight.grad)


@pytest.mark.compiler
def test_load_then_compile_then_ddp_then_step(two):
    two.run(load_then_compile_then_wrap, two.run(save, "max")[0])


def wait_for_nobody(rank):
    if rank == 0:
        dist.barrier()


def test_a_rank_that_waits_fails_the_test():
    pool = Pool(2)
    pool.run(gather, timeout=60)
    with pytest.raises(pytest.fail.Exception, match=r"ranks \[0\] had not finished after 1 s"):
        pool.run(wait_for_nobody, timeout=1)
    assert pool.workers == []


# Side inputs go with their pairs


def marked(rank, penalty, steps, start=0):
    """Take calls whose side inputs tell the points apart: each row's mark is the mean of its point."""
    net = Net("group").double()
    for step in range(start, start + steps):
        x = batch(rank, step)
        penalty(lambda z, mark: net(z) * (1 + mark), x, model_kwargs={"mark": x.flatten(1).mean(1, keepdim=True)})


def save_marked(rank, method):
    penalty = build(method, radius=0.01)
    marked(rank, penalty, 2)
    penalty.synchronize()
    return store(penalty.state_dict())


def load_marked(rank, method, state):
    penalty = build(method, radius=0.01)
    penalty.load_state_dict(state)
    mine = store(penalty.state_dict())["ranks"][0]["side"]["mark"]
    marked(rank, penalty, 1, start=2)
    return mine


@pytest.mark.filterwarnings("ignore:.*holds the pairs of this rank only")
@pytest.mark.parametrize("method", PERSISTENT)
def test_side_inputs_are_saved_and_dealt_with_their_pairs(pools, method):
    saved = pools[2].run(save_marked, method)[0]
    whole = torch.cat([r["side"]["mark"] for r in saved["ranks"]]).flatten()
    assert len(whole) == 12
    assert len(set(whole.tolist())) > 2
    on_three = pools[3].run(load_marked, method, saved)
    assert sorted(torch.cat(on_three).flatten().tolist()) == sorted(whole.tolist())
    for rank, mine in enumerate(on_three):
        assert mine.flatten().tolist() == whole[rank::3].tolist()
    assert load_marked(0, method, saved).flatten().tolist() == whole.tolist()
