"""Models that run a part of themselves in their own backward: reversible blocks, adjoint solvers."""

import copy
import warnings

import pytest
import torch
import torch.utils.checkpoint
from torch import nn
from torch.utils.checkpoint import checkpoint
from zoo import METHODS, gradients, mlp, penalty_of, same, traces

from torchlipreg import lipschitz_lower_bound, operator_norm


class Reversible(torch.autograd.Function):
    """y₁ = x₁ + f(x₂), y₂ = x₂ + g(y₁), whose backward computes x from y, and calls backward() on the way."""

    @staticmethod
    def forward(ctx, z, f, g):
        x1, x2 = z.chunk(2, 1)
        with torch.no_grad():
            y1 = x1 + f(x2)
            y2 = x2 + g(y1)
        ctx.y, ctx.f, ctx.g = (y1, y2), f, g
        return torch.cat([y1, y2], 1)

    @staticmethod
    def backward(ctx, gradient):
        (y1, y2), (d1, d2) = ctx.y, gradient.chunk(2, 1)
        with torch.enable_grad():
            y1 = y1.detach().requires_grad_()
            gy1 = ctx.g(y1)
            gy1.backward(d2)
        d1 = d1 + y1.grad
        with torch.enable_grad():
            x2 = (y2 - gy1).detach().requires_grad_()
            ctx.f(x2).backward(d1)
        return torch.cat([d1, d2 + x2.grad], 1), None, None


class Adjoint(torch.autograd.Function):
    """A part without a graph, that its backward runs once more."""

    @staticmethod
    def forward(ctx, z, f, *weights):
        ctx.f = f
        ctx.save_for_backward(z, *weights)
        with torch.no_grad():
            return f(z)

    @staticmethod
    def backward(ctx, gradient):
        z, *weights = ctx.saved_tensors
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            found = torch.autograd.grad(ctx.f(z), [z, *weights], gradient)
        return found[0], None, *found[1:]


def half(middle=nn.Identity):
    return nn.Sequential(nn.Linear(3, 8), middle(), nn.Tanh(), nn.Linear(8, 3))


class Net(nn.Module):
    def __init__(self, middle=nn.Identity, kind="reversible"):
        super().__init__()
        self.first, self.f, self.g, self.last = nn.Linear(6, 6), half(middle), half(), nn.Linear(6, 3)
        self.kind = kind

    def forward(self, x):
        z = self.first(x)
        if self.kind == "reversible":
            return self.last(Reversible.apply(z, self.f, self.g))
        a, b = z.chunk(2, 1)
        if self.kind == "adjoint":
            return self.last(torch.cat([Adjoint.apply(a, self.f, *self.f.parameters()), b], 1))
        if self.kind == "checkpoint":
            return self.last(torch.cat([checkpoint(self.f, a, use_reentrant=False), b], 1))
        a = a + self.f(b)
        return self.last(torch.cat([a, b + self.g(a)], 1))


@pytest.mark.parametrize("radius", [0.1, None])
@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_a_call_leaves_gradients_alone(method, held, radius):
    """The ascent's autograd.grad added to them, by the block's own backward()."""
    if method in ("tv", "ptv") and radius is None:
        pytest.skip("needs a radius")
    torch.manual_seed(0)
    net, x = Net().double(), torch.randn(8, 6, dtype=torch.float64)
    if held:
        net(x).square().mean().backward()
    objects, before = [p.grad for p in net.parameters()], traces(net)
    penalty = penalty_of(method, radius=radius)
    for _ in range(2):
        penalty(net, x, net(x))
    assert same(traces(net), before)
    assert all(p.grad is own for p, own in zip(net.parameters(), objects, strict=True))


def test_a_step_has_the_gradient_of_the_same_block_written_plainly():
    torch.manual_seed(0)
    net, x = Net().double(), torch.randn(8, 6, dtype=torch.float64)
    plain = copy.deepcopy(net)
    plain.kind = "plain"
    for m in (net, plain):
        penalty = penalty_of("tv")
        for _ in range(2):  # accumulated
            out = m(x)
            (out.square().mean() + penalty(m, x, out)).backward()
    for p, wanted in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, wanted.grad, rtol=1e-9, atol=1e-12)


def test_measures_leave_gradients_alone():
    net, x = Net(), torch.randn(8, 6)
    lipschitz_lower_bound(net, x)
    assert [p.grad for p in net.parameters()] == [None] * len([*net.parameters()])
    with pytest.raises(RuntimeError):  # no derivative in forward mode, nor a second one
        operator_norm(net, x)
    assert [p.grad for p in net.parameters()] == [None] * len([*net.parameters()])


def test_tied_parameters_get_their_gradient_back():
    net, x = Net(), torch.randn(8, 6)
    net.g[0].weight = net.f[0].weight
    net(x).sum().backward()
    before = {name: p.grad for name, p in net.named_parameters()}
    penalty_of("tv")(net, x)
    assert {name: p.grad for name, p in net.named_parameters()} == before


def test_a_batchnorm_whose_weight_the_backward_asks_for_fails_with_the_way_out():
    net, x = Net(lambda: nn.BatchNorm1d(8), "adjoint"), torch.randn(8, 6)
    with pytest.warns(UserWarning, match="Put them in eval mode there"), pytest.raises(RuntimeError):
        penalty_of("tv")(net, x)
    penalty_of("tv")(net.eval(), x).backward()


@pytest.mark.parametrize(
    ("kind", "middle"),
    [
        ("reversible", lambda: nn.Dropout(0.5)),
        ("reversible", lambda: nn.BatchNorm1d(8)),
        ("adjoint", lambda: nn.Dropout(0.5)),
    ],
)
def test_a_part_that_would_run_again_in_train_mode_is_told(kind, middle):
    net, x = Net(middle, kind), torch.randn(8, 6)
    penalty = penalty_of("tv")
    with pytest.warns(UserWarning, match="runs anew in its backward"):
        penalty(net, x)
    penalty(net, x)  # warnings are errors


@pytest.mark.parametrize(
    "build",
    [
        lambda: Net(),
        lambda: Net(kind="adjoint"),
        lambda: Net(lambda: nn.Dropout(0.5)).eval(),
        lambda: Net(lambda: nn.Dropout(0.5), kind="checkpoint"),
        lambda: Net(lambda: nn.Dropout(0.5), kind="plain"),
    ],
    ids=["reversible", "adjoint", "eval mode", "checkpoint", "plain"],
)
def test_what_runs_as_it_should_is_not_told(build):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        penalty_of("tv")(build(), torch.randn(8, 6)).backward()


def test_a_penalty_inside_of_a_transform_is_refused():
    net, x, penalty = mlp(), torch.randn(8, 6), penalty_of("tv")
    weights = dict(net.named_parameters())

    def loss(weights, update=True):
        return penalty(lambda z: torch.func.functional_call(net, weights, z), x, update=update)

    for update in (True, False):
        with pytest.raises(RuntimeError, match=r"inside of a torch\.func transform"):
            torch.func.grad(loss)(weights, update)
    assert penalty.pairs is None
    (torch.autograd.grad(loss(weights), [*weights.values()], create_graph=True)[0].square().sum()).backward()


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_penalty_inside_of_a_checkpoint_is_refused(reentrant):
    """As it was, its pairs moved twice a step, and the gradient was that of other pairs than the value's."""
    net, x, penalty = mlp(), torch.randn(8, 6, requires_grad=True), penalty_of("tv")
    with pytest.raises(RuntimeError, match=r"in a backward.* outside of the checkpoint"):
        torch.utils.checkpoint.checkpoint(
            lambda z: penalty(net, z) + net(z).sum(), x, use_reentrant=reentrant
        ).backward()


def test_a_call_that_moves_nothing_may_be_inside_of_a_checkpoint():
    net, x, penalty = mlp(), torch.randn(8, 6), penalty_of("tv")
    penalty(net, x)
    z = x.clone().requires_grad_()
    inside = torch.utils.checkpoint.checkpoint(lambda z: penalty(net, z, update=False), z, use_reentrant=False)
    inside.backward()
    found = gradients(net)
    net.zero_grad()
    penalty(net, x, update=False).backward()
    torch.testing.assert_close(found, gradients(net))


def test_gradients_in_a_precision_of_their_own_are_left_alone():
    """Widened by ``.data``, as for accumulation, they cannot be assigned back: they were lost, with an error."""
    net, x = mlp(), torch.randn(8, 6)
    net(x).sum().backward()
    for p in net.parameters():
        p.grad.data = p.grad.data.double()
    before = [(p.grad, p.grad.clone()) for p in net.parameters()]
    penalty_of("tv")(net, x)
    for p, (own, value) in zip(net.parameters(), before, strict=True):
        assert p.grad is own
        assert torch.equal(own, value)


def test_what_runs_again_is_told_in_the_first_call_that_has_gradients():
    net, x, penalty = Net(lambda: nn.Dropout(0.5)), torch.randn(8, 6), penalty_of("tv")
    with torch.no_grad():
        penalty(net, x)
    with pytest.warns(UserWarning, match="runs anew in its backward"):
        penalty(net, x)
