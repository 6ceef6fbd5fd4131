"""Compiled models: the same values, and few graphs."""

import copy
import warnings

import pytest
import torch
from torch import nn
from zoo import METHODS, gradients, mlp, penalty_of, same

from torchlipreg import lipschitz_lower_bound
from torchlipreg.inspection.reuse import AGAIN

pytestmark = pytest.mark.compiler
CompileCounter = pytest.importorskip("torch._dynamo.testing").CompileCounter
SETTINGS = {
    "tv": {"method": "tv"},
    "part of the batch": {"method": "tv", "num_pairs": 4},
    "ptv": {"method": "ptv"},
    "free pairs": {"method": "ptv", "anchored": False},
    "max": {"method": "max"},
    "sum, two steps": {"method": "sum", "ascent_steps": 2},
}


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def batchnorm_net():
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 3))


def train(model, net, penalty, steps=50, give_outputs=True):
    """Train on batches of which every tenth is short; return the penalties' values and the last gradient."""
    torch.manual_seed(1)
    values = []
    for i in range(steps):
        x = torch.randn(5 if i % 10 == 9 else 8, 6)
        out = model(x)
        value = penalty(model, x, out if give_outputs else None)
        net.zero_grad()
        (out.square().mean() + value).backward()
        values.append(value.detach())
        with torch.no_grad():
            for p in net.parameters():
                p -= 0.01 * p.grad
    return torch.stack(values), gradients(net)


@pytest.mark.filterwarnings("error:.*global hooks")
def test_looks_at_a_compiled_model_make_torch_warn_of_nothing():
    """As it was, it warned of our own hook in every 64th call, and in each forward of a lower bound."""
    net, x = mlp(), torch.randn(8, 6)
    model, penalty = torch.compile(net, backend="aot_eager"), penalty_of("tv")
    for _ in range(AGAIN + 1):
        penalty(model, x).backward()
    assert lipschitz_lower_bound(model, x, radius=0.1) > 0


@pytest.mark.parametrize("kind", SETTINGS)
@pytest.mark.parametrize(
    ("build", "dynamic", "in_place"),
    # The forward of a net with train-mode BatchNorm alone is compiled again for a second batch size.
    [(mlp, None, False), (mlp, None, True), (batchnorm_net, True, False)],
    ids=["mlp", "in place", "batchnorm, dynamic"],
)
def test_three_graphs_at_most(kind, build, dynamic, in_place):
    net, counter = build(), CompileCounter()
    if in_place:
        net.compile(backend=counter, dynamic=dynamic)
        net(torch.randn(8, 6))
        if not counter.frame_count:
            pytest.skip("this torch does not compile a Sequential in place")
        torch._dynamo.reset()
        counter.frame_count = 0
    model = net if in_place else torch.compile(net, backend=counter, dynamic=dynamic)
    train(model, net, penalty_of(**SETTINGS[kind]))
    assert 1 <= counter.frame_count <= 3


def test_the_counter_counts():
    net, counter = mlp(), CompileCounter()
    model = torch.compile(net, backend=counter, dynamic=False)
    for n in (4, 5, 6, 7):
        model(torch.randn(n, 6))
    assert counter.frame_count == 4


@pytest.mark.parametrize("kind", SETTINGS)
@pytest.mark.parametrize(("backend", "in_place"), [("aot_eager", False), ("eager", True)])
def test_the_values_of_the_eager_model(kind, backend, in_place):
    eager = mlp()
    net = copy.deepcopy(eager)
    if in_place:
        net.compile(backend=backend)
    model = net if in_place else torch.compile(net, backend=backend)
    wanted = train(eager, eager, penalty_of(**SETTINGS[kind]), steps=12)
    torch.testing.assert_close(train(model, net, penalty_of(**SETTINGS[kind]), steps=12), wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("in_place", [False, True])
def test_the_limit_of_a_compiled_model(method, in_place):
    eager, x = batchnorm_net(), torch.randn(8, 6)
    net = copy.deepcopy(eager)
    if in_place:
        net.compile(backend="eager")
    model = net if in_place else torch.compile(net, backend="eager")
    wanted, penalty = penalty_of(method, radius=0.0), penalty_of(method, radius=0.0)
    for _ in range(2):
        assert same(penalty(model, x), wanted(eager, x))
    assert model(x).requires_grad  # compiled still
    if in_place:
        assert net._compiled_call_impl is not None


def test_a_compiled_model_stays_frozen_and_unchanged():
    net, x = batchnorm_net(), torch.randn(8, 6)
    model, penalty = torch.compile(net, backend="eager"), penalty_of("max")
    before = copy.deepcopy(net.state_dict())
    first = penalty(model, x)
    assert torch.equal(penalty(model, x, update=False), first)
    assert same(dict(net.state_dict()), dict(before))
    assert all(m.training for m in net.modules())


class Unregistered(nn.Module):
    """A norm in a plain list, which no walk over modules finds."""

    def __init__(self):
        super().__init__()
        self.first, self.norms, self.last = nn.Linear(6, 8), [nn.BatchNorm1d(8)], nn.Linear(8, 3)

    def forward(self, x):
        return self.last(self.norms[0](self.first(x)).tanh())


class Dropping(nn.Module):
    """Dropout in a plain list."""

    def __init__(self):
        super().__init__()
        self.first, self.rest = nn.Linear(6, 50), [nn.Sequential(nn.Dropout(0.5), nn.Linear(50, 3))]

    def forward(self, x):
        return self.rest[0](self.first(x))


def test_hidden_modules_of_a_compiled_model_are_found_in_the_limit_too():
    eager, x = Dropping(), torch.randn(8, 6)
    model, state = torch.compile(copy.deepcopy(eager), backend="eager"), torch.get_rng_state()
    for _ in range(2):
        torch.testing.assert_close(penalty_of("tv", radius=0.0)(model, x), penalty_of("tv", radius=0.0)(eager, x))
    assert torch.equal(torch.get_rng_state(), state)


def test_modules_that_a_compiled_model_hides_are_found_before_the_first_call():
    eager, x = Unregistered(), torch.randn(8, 6)
    net = copy.deepcopy(eager)
    model, penalty, wanted = torch.compile(net, backend="eager"), penalty_of("tv"), penalty_of("tv")
    for _ in range(2):
        with torch.no_grad():  # the statistics move
            assert same(model(x), eager(x))
        before = copy.deepcopy(net.norms[0].state_dict())
        torch.testing.assert_close(penalty(model, x), wanted(eager, x), rtol=1e-5, atol=0)
        assert same(dict(net.norms[0].state_dict()), dict(before))


def test_a_warning_of_torch_itself_is_all_that_pyproject_ignores():
    model, x = torch.compile(nn.Linear(6, 3), backend="eager"), torch.randn(4, 6, requires_grad=True)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model(x.clone()).sum().backward()
    assert all("grad attribute of a Tensor that is not a leaf" in str(w.message) for w in told)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("build", [mlp, batchnorm_net])
@pytest.mark.parametrize("method", ["tv", "max"])
def test_a_whole_training_step_that_is_compiled(method, build, backend):
    torch.manual_seed(0)
    net = build()
    found = []
    for compiles in (False, True):
        model, penalty = copy.deepcopy(net), penalty_of(method)
        model[-2].eval()  # Dropout, whose random numbers a compiled graph draws in an order of its own

        def loss(x, model=model, penalty=penalty):
            out = model(x)
            return out.square().mean() + penalty(model, x, out)

        step = torch.compile(loss, backend=backend) if compiles else loss
        torch.manual_seed(1)
        for n in (8, 8, 5):
            model.zero_grad()
            value = step(torch.randn(n, 6))
            value.backward()
        found.append((value.detach(), gradients(model), penalty.estimate))
    torch.testing.assert_close(found[1], found[0])
