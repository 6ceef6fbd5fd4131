"""A small net, and the slow truth about its averaged gradients, for the tests with several processes."""

from __future__ import annotations

import copy
import math
from functools import partial

import torch
import torch.distributed as dist
from torch import nn

from torchlipreg import LipschitzPenalty

METHODS = {
    "max": {"num_pairs": 6},
    "sum": {"num_pairs": 6, "radius": 0.3, "ascent": "adam"},
    "tv": {"radius": 0.2, "input_norm": math.inf},
    "ptv": {"radius": 0.2, "anchored": False, "exponent": 1, "ascent": "nesterov"},
    "limit": {"method": "tv", "radius": 0},
}


class Net(nn.Module):
    """A small net with train-mode state; ``aux`` is used in one mode only."""

    def __init__(self, norm="batch", aux=None):
        super().__init__()
        torch.manual_seed(3)
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4) if norm == "batch" else nn.GroupNorm(2, 4)
        self.head = nn.Linear(16, 3)
        self.aux_mode = aux
        self.aux = nn.Linear(16, 3) if aux else None

    def forward(self, x):
        z = torch.tanh(self.norm(self.conv(x))).flatten(1)
        y = self.head(z)
        return y + self.aux(z) if self.aux_mode == ("train" if self.training else "eval") else y


def batch(rank, step=0, size=None, dtype=torch.float64):
    generator = torch.Generator().manual_seed(100 * step + rank)
    size = (5, 8, 3)[rank] if size is None else size  # ranks of unequal weight in the mean
    return torch.rand(size, 1, 4, 4, generator=generator, dtype=dtype)


def build(method, **options):
    return LipschitzPenalty(**{"method": method, "weight": 1.0, **METHODS[method], **options})


def task_loss(y):
    return y.square().mean()


def gather(value):
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def average(tensors):
    return [sum(t) / dist.get_world_size() for t in zip(*gather(tensors), strict=True)]


def following(net, buffers, reference, x):
    """The net in eval mode, with BatchNorm statistics that follow those of a reference batch."""
    var, mean = torch.var_mean(net.conv(reference), [0, 2, 3], correction=0)
    mean = buffers["norm.running_mean"] + mean - mean.detach()
    var = (buffers["norm.running_var"] + net.norm.eps) * (var + net.norm.eps) / (var + net.norm.eps).detach()
    z = (net.conv(x) - mean[:, None, None]) / var.sqrt()[:, None, None]
    z = torch.tanh(z * net.norm.weight[:, None, None] + net.norm.bias[:, None, None]).flatten(1)
    return net.head(z) + (net.aux(z) if net.aux_mode == "eval" else 0)


def union_gradient(net, penalty, counts=True, data=None):
    """The slow truth: value, estimate and gradient at the pairs of all ranks, in one plain model in eval mode.

    DDP lets each rank's BatchNorm keep running statistics of its own between two broadcasts, so buffers go with pairs,
    and so does the batch, ``data``, that its statistics follow.
    """
    net, s, q = copy.deepcopy(net).eval(), penalty.settings, []
    if data is not None:
        data = penalty.pairs.x if s.anchored else data[: len(penalty.pairs.x)]
    of_ranks = gather((*penalty.pairs, data, dict(net.named_buffers())) if counts else None)
    for x, x_prime, reference, buffers in filter(None, of_ranks):
        f = partial(torch.func.functional_call, net, {**dict(net.named_parameters()), **buffers})
        if reference is not None and buffers:
            f = partial(following, net, buffers, reference)
        change = torch.func.jvp(f, (x,), (x_prime - x,))[1] if penalty.radius == 0 else f(x_prime) - f(x)
        distance = torch.linalg.vector_norm((x_prime - x).flatten(1), s.input_norm, dim=1)
        q.append(torch.linalg.vector_norm(change, s.output_norm, dim=1) / distance)
    q = torch.cat(q)
    value = q.max() ** s.exponent if s.method == "max" else (q**s.exponent).mean()
    gradients = torch.autograd.grad(value, list(net.parameters()), allow_unused=True, materialize_grads=True)
    return value.detach(), q.detach().max(), gradients


def local_task_gradient(net, x):
    net = copy.deepcopy(net)
    loss = task_loss(net(x))
    gradients = torch.autograd.grad(loss, list(net.parameters()), allow_unused=True, materialize_grads=True)
    return [g.detach() for g in gradients]


def assert_equal(got, expected, tolerance=1e-12):
    scale = max(float(e.abs().max()) for e in expected)
    for g, e in zip(got, expected, strict=True):
        assert float((g - e).abs().max()) <= tolerance * scale


def assert_same_on_all_ranks(value):
    values = gather(value)
    assert all(torch.equal(v, values[0]) for v in values), values
