"""Sharded parameters: every forward goes through the outermost wrapper, and gradients equal those of a whole model."""

from __future__ import annotations

import copy
import sys
from unittest.mock import patch

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from torchlipreg.model.parts import parallelism

pytest.importorskip("torch.distributed.fsdp", reason="needs torch.distributed.fsdp")
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecision

fsdp = sys.modules["torch.distributed.fsdp"]
pytestmark = pytest.mark.skipif(not hasattr(fsdp, "fully_shard"), reason="fully_shard came with torch 2.6")

from data_parallel import (  # noqa: E402
    METHODS,
    Net,
    assert_equal,
    assert_same_on_all_ranks,
    average,
    batch,
    build,
    local_task_gradient,
    task_loss,
    union_gradient,
)
from zoo import bare  # noqa: E402


def shard(net, param_dtype=None):
    policy = fsdp.MixedPrecisionPolicy(param_dtype=param_dtype)
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    for module in (net.conv, net.head, net):
        fsdp.fully_shard(module, mesh=mesh, mp_policy=policy)
    return net


def train(rank, method, norm, micro_steps=1, compiled=False, sizes=None):
    net = Net(norm).double()
    model = sharded = shard(copy.deepcopy(net))
    if compiled:
        model = torch.compile(sharded, backend="aot_eager")
    penalty = build(method)
    for step in range(2):
        sharded.zero_grad()
        expected = [torch.zeros_like(p) for p in net.parameters()]
        for micro_step in range(micro_steps):
            sharded.set_requires_gradient_sync(micro_step == micro_steps - 1)
            x = batch(rank, 10 * step + micro_step, sizes and sizes[step][rank])
            y = model(x)
            value = penalty(model, x, y)
            ((task_loss(y) if len(x) else y.sum()) + value).backward()
            for ours, theirs in zip(net.buffers(), sharded.buffers(), strict=True):
                ours.copy_(theirs)
            of_task = average(local_task_gradient(net, x) if len(x) else [torch.zeros_like(e) for e in expected])
            expected_value, _, of_penalty = union_gradient(net, penalty, len(x) or method in ("max", "sum"))
            expected = [e + a + b for e, a, b in zip(expected, of_task, of_penalty, strict=True)]
            assert_equal([value], [expected_value])
            assert_same_on_all_ranks(value.detach())
        assert_equal([p.grad.full_tensor() for p in sharded.parameters()], expected)


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("method", METHODS)
def test_gradient_is_that_of_the_whole_model(two, method, norm):
    two.run(train, method, norm)


@pytest.mark.parametrize("method", METHODS)
def test_accumulation(two, method):
    two.run(train, method, "group", 3)


@pytest.mark.parametrize("method", METHODS)
def test_empty_last_batch(two, method):
    two.run(train, method, "group", 1, False, [(5, 8), (5, 0)])


@pytest.mark.compiler
@pytest.mark.parametrize("method", ["tv", "max"])
def test_compiled(two, method):
    two.run(train, method, "group", 1, True)


def mixed_precision(rank):
    net, x = Net("group"), batch(rank, dtype=torch.float32)
    penalty = bare("tv", 1.0, radius=0.01)
    with pytest.warns(UserWarning, match="less than torch.bfloat16 resolves"):
        value = penalty(shard(copy.deepcopy(net), torch.bfloat16), x)
    exact = bare("tv", 1.0, radius=0.01)(net, x)
    assert abs(value - exact) < 0.05 * exact


def test_bfloat16_shards_are_measured_without_cancellation(two):
    two.run(mixed_precision)


def fsdp1(rank):
    net, x = Net("group"), batch(rank, dtype=torch.float32)
    model = FullyShardedDataParallel(copy.deepcopy(net), device_id=torch.device("cpu"), use_orig_params=True)
    penalty = build("tv")
    torch.testing.assert_close(penalty(model, x, model(x)), build("tv")(net, x))
    with model.no_sync(), pytest.raises(RuntimeError, match="no_sync"):
        penalty(model, x)
    penalty.radius = 0
    with pytest.raises(RuntimeError, match="FSDP1"):
        penalty(model, x)
    half = FullyShardedDataParallel(net, device_id=torch.device("cpu"), mixed_precision=MixedPrecision(torch.bfloat16))
    with pytest.warns(UserWarning, match="bfloat16"), pytest.raises(RuntimeError, match="FSDP1"):
        build("tv")(half, 0.01 * x + 5)


def test_fsdp1_works_or_says_so(two):
    two.run(fsdp1)


def refuse(rank):
    from torch.distributed.tensor import DTensor, Replicate
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    mesh = init_device_mesh("cpu", (2,))
    net, x, penalty = Net("group"), batch(0, dtype=torch.float32), build("tv")
    with pytest.raises(TypeError, match=r"`x`.*DTensor"):
        penalty(net, DTensor.from_local(x, mesh, [Replicate()]))
    with pytest.raises(RuntimeError, match="tensor parallelism"):
        penalty(parallelize_module(net, mesh, {"head": ColwiseParallel()}), x)
    zero3 = nn.Linear(4, 2)
    zero3.weight.ds_id = 0  # what DeepSpeed adds to a parameter that it shards
    with pytest.raises(RuntimeError, match="ZeRO-3"):
        penalty(zero3, x)


def look_once(rank):
    net, x, penalty = Net("group"), batch(rank, dtype=torch.float32), build("tv")
    with patch.object(parallelism, "_check_parameters") as check_parameters:
        for model in (net, net, nn.parallel.DistributedDataParallel(net)):
            penalty(model, x)
    assert check_parameters.call_count == 2


def test_a_model_s_parameters_are_looked_at_in_its_first_call_only(two):
    two.run(look_once)


def test_what_cannot_work_says_so_at_once(two):
    two.run(refuse)


class Block(nn.Module):
    """Keeps an auxiliary loss, a state, and books."""

    def __init__(self):
        super().__init__()
        self.linear, self.aux, self.log, self.calls = nn.Linear(4, 4), None, [], 0
        self.previous = torch.zeros(4)

    def forward(self, x, books=None):
        y = self.linear(x).tanh() + self.previous
        self.aux, self.calls, self.previous = y.square().mean(), self.calls + 1, y.detach().mean(0)
        self.log.append(len(x))
        if books is not None:
            books["seen"] = books.get("seen", 0) + 1
        return y


def leave_nothing(rank):
    torch.manual_seed(0)
    net, x, collected = Block(), torch.randn(6, 4), []
    twin = copy.deepcopy(net)
    net.register_forward_hook(lambda *_: collected.append(1))
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    fsdp.fully_shard(net, mesh=mesh)
    penalty, whole = build("tv"), build("tv")
    for calls in range(1, 4):
        out = net(x)
        aux, previous, books = net.aux, net.previous, {"seen": 1}
        value = penalty(net, x, out, model_kwargs={"books": books})
        assert net.aux is aux
        assert net.previous is previous
        assert (net.calls, len(net.log), len(collected), books) == (calls, calls, calls, {"seen": 1})
        twin(x)
        torch.testing.assert_close(value, whole(twin, x, model_kwargs={"books": books}))
        (value + net.aux).backward()


def test_what_a_forward_leaves_behind_is_put_back(two):
    two.run(leave_nothing)
