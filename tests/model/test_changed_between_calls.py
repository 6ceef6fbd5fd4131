"""Models that change from call to call: modules that come later, a state that begins later, wrappers made anew."""

import contextlib
import copy
import functools
import threading
import types
import warnings
import weakref

import pytest
import torch
from torch import nn
from zoo import Counting, Seen, mlp, penalty_of, same, traces

from torchlipreg.inspection.inspector import OFTEN, Inspector
from torchlipreg.inspection.reuse import AGAIN
from torchlipreg.model.parts.modules import as_found


class Holder:
    def __init__(self, module):
        self.module = module


class Heads(nn.Module):
    """Keeps its heads where torch does not see them."""

    def __init__(self, place):
        super().__init__()
        self.body, self.task = nn.Linear(6, 8), "a"
        self.heads = {"a": nn.Linear(8, 3)}
        self.heads = [self.heads] if place == "list" else self.heads
        self.late, self.place = None, place

    def add(self, head):
        if self.place == "object":
            self.late = Holder(head)
        else:
            (self.heads[0] if self.place == "list" else self.heads)["b"] = head
        self.task = "b"

    def forward(self, x):
        heads = self.heads[0] if self.place == "list" else self.heads
        head = heads["a"] if self.task == "a" else self.late.module if self.place == "object" else heads["b"]
        return head(self.body(x))


@pytest.mark.parametrize("radius", [0.1, 0.0])
@pytest.mark.parametrize("place", ["dict", "list", "object"])
def test_a_head_that_comes_later_is_frozen(place, radius):
    """Its Dropout is off, its BatchNorm on running statistics, and neither moves."""
    net, x, penalty = Heads(place), torch.randn(16, 6), penalty_of("tv", radius=radius)
    penalty(net, x)
    late = nn.Sequential(nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    net.add(late)
    before, random = traces(late), torch.get_rng_state()
    with pytest.warns(UserWarning, match="BatchNorm1d"):  # of which the first call holds the statistics
        penalty(net, x)
    assert torch.equal(torch.get_rng_state(), random)
    assert same(traces(late), before)
    u, v = penalty.pairs
    net.eval(), late.eval()
    if radius:
        quotients = (net(v) - net(u)).norm(dim=1) / (v - u).norm(dim=1)
        torch.testing.assert_close(penalty.estimate, quotients.max().detach(), rtol=1e-4, atol=0)


class Bank(nn.Module):
    """Begins to carry a state when it is told to."""

    def __init__(self):
        super().__init__()
        self.linear, self.on, self.offset = nn.Linear(6, 3), False, 0.0

    def forward(self, x):
        if self.on:
            self.offset = self.offset + 1.0
        return self.linear(x) * (1.0 + self.offset)


def test_a_state_that_begins_later_is_noticed():
    net, x, penalty = Bank().double(), torch.randn(8, 6, dtype=torch.float64), penalty_of("tv")
    for _ in range(2):
        penalty(net, x)
    net.on = True
    for _ in range(AGAIN):
        penalty(net, x)
    assert net.offset == 0.0
    exact = 2.0 * torch.linalg.matrix_norm(net.linear.weight, 2)  # of the first forward after the loop's
    assert 0.5 * exact < penalty.estimate <= exact * (1 + 1e-9)


def test_a_sequential_that_is_made_anew_is_looked_at_once():
    ran = Seen()
    encoder, head, x, counts = Counting(6, 8, ran), nn.Linear(8, 3), torch.randn(8, 6), []
    full, penalty = nn.Sequential(encoder, nn.ReLU(), head), penalty_of("tv")
    for make in (lambda: full, lambda: full[0:], lambda: nn.Sequential(encoder, nn.ReLU(), head)):
        ran.clear()
        out = make()(x)
        penalty(make(), x, out)
        counts.append(len(ran))
    assert counts[0] > 8 > counts[2]
    assert counts[1] == counts[2] == 3  # the loop's, the ascent's and the penalty's


def test_another_layer_in_a_sequential_is_looked_at():
    net, x, penalty = mlp(), torch.randn(8, 6), penalty_of("tv")
    penalty(net, x)

    class Noisy(nn.Linear):
        def forward(self, x):
            return super().forward(x) + torch.randn(3)

    net[2] = Noisy(8, 3)
    with pytest.raises(ValueError, match="two forwards"):
        penalty(net, x)


class Routed(nn.Module):
    """Experts that torch does not see, one for each kind of batch."""

    def __init__(self, hold, trained):
        super().__init__()
        self.body = nn.Linear(6, 3)
        self.held = hold([nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)) for _ in range(2)])
        [expert.requires_grad_(trained) for expert in self.experts]

    @property
    def experts(self):
        return self.held.module if isinstance(self.held, Holder) else self.held[-1]

    def forward(self, x):
        return self.body(x) + self.experts[int(x.mean() > 0)](x)


class Locked(Holder):
    def __init__(self, module):
        super().__init__(module)
        self.lock = threading.Lock()


def closure_of(module):
    return lambda x: module(x)


UNSEEN = {  # where modules are not found, but met
    "lambdas": lambda experts: [[lambda x, e=e: e(x) for e in experts]],
    "closures": lambda experts: [[closure_of(e) for e in experts]],
    "partials": lambda experts: [[functools.partial(e) for e in experts]],
    "methods": lambda experts: [[e.forward for e in experts]],
    "with a lock": Locked,
    "a view": lambda experts: [types.MappingProxyType(dict(enumerate(experts)))],
    "among many": lambda experts: [[*experts, *range(2_000)]],
    "deep": lambda experts: [[[[[[[experts]]]]]]],
}


ALL = weakref.WeakKeyDictionary()  # out of a penalty's sight


class Unseen(nn.Module):
    def __init__(self, hold):
        super().__init__()
        self.body = nn.Linear(6, 3)
        self.all = [nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)) for _ in range(2)]
        self.held = hold(self.all)
        ALL[self] = self.all
        del self.all

    def forward(self, x):
        experts = self.held.module if isinstance(self.held, Holder) else self.held[-1]
        while isinstance(experts, list) and len(experts) == 1:
            experts = experts[0]
        return self.body(x) + experts[int(x.mean() > 0)](x)


@pytest.mark.parametrize("hold", UNSEEN.values(), ids=UNSEEN)
def test_experts_that_cannot_be_found_are_frozen_when_they_run(hold):
    torch.manual_seed(0)
    net, x, penalty = Unseen(hold), torch.randn(32, 6), penalty_of("tv", radius=0.01)
    experts = ALL[net]
    for i, batch in enumerate((x - 2, x + 2, x + 3)):
        out = net(batch)
        before, random = [traces(expert) for expert in experts], torch.get_rng_state()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="BatchNorm1d in train mode: its statistics are held")
            value = penalty(net, batch, out)
        assert all(map(same, before, map(traces, experts)))
        assert torch.equal(random, torch.get_rng_state())
        chosen, modes = experts[int(i > 0)], [expert.training for expert in experts]
        chosen.eval()
        u, v = penalty.pairs
        with torch.no_grad():
            moved = (net.body(v) + chosen(v) - net.body(u) - chosen(u)).norm(dim=1)
        [expert.train(mode) for expert, mode in zip(experts, modes, strict=True)]
        torch.testing.assert_close(value.detach(), (moved / (v - u).norm(dim=1)).square().mean(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("hold", [lambda experts: [experts], Holder, lambda experts: (1, experts)])
def test_experts_that_the_batch_chooses_are_frozen_from_the_first(hold, trained):
    """The second one has not run in the first call, but it counts: the loop's outputs, with Dropout, are not f(x)."""
    torch.manual_seed(0)
    net, x, penalty = Routed(hold, trained), torch.randn(32, 6), penalty_of("tv", radius=0.01)
    for batch in (x - 2, x + 2):
        out = net(batch)
        before = [traces(expert) for expert in net.experts]
        value = penalty(net, batch, out)
        assert not penalty.reuses_outputs
        assert all(map(same, before, map(traces, net.experts)))
        fixed = copy.deepcopy(net).eval()
        [expert.eval() for expert in fixed.experts]
        u, v = penalty.pairs
        quotients = (fixed(v) - fixed(u)).norm(dim=1) / (v - u).norm(dim=1)
        torch.testing.assert_close(value, quotients.square().mean(), rtol=1e-3, atol=0)


class Head(nn.Module):
    """Knows the model around it, by a tuple."""

    def __init__(self):
        super().__init__()
        self.linear, self.ran = nn.Linear(6, 3), Seen()

    def forward(self, x):
        self.ran.append(1)
        return self.linear(x)


def test_a_model_around_the_model_does_not_count():
    head = Head()
    around, x, penalty = nn.Sequential(nn.Dropout(0.5), head), torch.randn(32, 6), penalty_of("tv")
    head.around = (around,)
    for calls in range(3):
        out = head(x)
        head.ran.clear()
        penalty(head, x, out)
        assert calls == 0 or len(head.ran) == 2  # the ascent's and the penalty's
    assert penalty.reuses_outputs


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is:FutureWarning", "ignore:`torch.jit:DeprecationWarning")
def test_lazy_and_scripted_parts_in_lists_are_left_alone():
    x = torch.randn(8, 6)
    for hidden in (nn.Sequential(nn.LazyLinear(3)), nn.Sequential(torch.jit.script(nn.Linear(6, 3)))):
        net = nn.Sequential(nn.Linear(6, 3))
        net.extra = [hidden]
        value = penalty_of("tv")(net, x)
        assert value.isfinite()


class Noise(nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x)


def test_sequentials_of_the_same_weights_are_told_apart_by_their_other_layers():
    linear, x, penalty = nn.Linear(6, 3), torch.randn(8, 6), penalty_of("tv")
    penalty(nn.Sequential(linear), x)
    with pytest.raises(ValueError, match="two forwards"):
        penalty(nn.Sequential(linear, Noise()), x)


class HalfInside(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x.bfloat16()).float()


@pytest.mark.parametrize("resumed", [True, False])
@pytest.mark.parametrize(("radius", "told"), [(0.01, True), (4.0, False), (1e-5, False), (0.0, False)])
def test_a_model_of_less_precision_than_the_first_is_told_where_it_matters(radius, told, resumed):
    x, penalty = torch.randn(32, 6), penalty_of("tv", radius=radius)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*less than torch.float32 resolves")
        penalty(mlp(), x)
        if resumed:
            state, penalty = penalty.state_dict(), penalty_of("tv", radius=radius)
            penalty.load_state_dict(state)
        later = HalfInside(mlp().bfloat16())
        with pytest.warns(UserWarning, match="another precision") if told else contextlib.nullcontext():
            penalty(later, x)
        penalty(mlp(), 3 * x)  # another batch is no other precision
        penalty(later, x)


def test_a_model_that_is_cast_is_looked_at_anew():
    """The floor of float32 stayed, and a quotient was up to three times what it is."""
    torch.manual_seed(0)
    net, x, penalty = mlp(), torch.rand(16, 6), penalty_of("tv", radius=0.001)
    penalty(net, x)
    penalty(net.double(), x.double())
    with pytest.warns(UserWarning, match="This model computes in torch.bfloat16, which resolves distances from"):
        penalty(net.bfloat16(), x)


def test_a_model_that_makes_its_parameters_in_its_forward_is_looked_at_once(monkeypatch):
    class Late(nn.Module):
        def forward(self, x):
            if not hasattr(self, "weight"):
                self.weight = nn.Parameter(torch.ones(6, 3, dtype=torch.float64))
            return x @ self.weight.to(x.dtype)

    looks, look = [], Inspector.look
    monkeypatch.setattr(Inspector, "look", lambda *args, **kwargs: looks.append(1) or look(*args, **kwargs))
    net, penalty = Late(), penalty_of("tv")
    for _ in range(4):
        penalty(net, torch.randn(8, 6))
    assert len(looks) == 1


class Predictor:
    def __init__(self, net):
        self.net = net

    def predict(self, x):
        return self.net(x)

    def __call__(self, x):
        return self.net(x)


class Trunk(nn.Module):
    def __init__(self):
        super().__init__()
        self.block, self.head = nn.Sequential(nn.Linear(6, 6), nn.Sequential(nn.Tanh())), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.block(x))


class Restless(nn.Module):
    def forward(self, x):
        return x + 0.1 * torch.randn_like(x)


def exchange(net):
    net.block[1][0] = Restless()


@pytest.mark.parametrize("given", ["module", "method", "object", "lambda"])
@pytest.mark.parametrize("deep", [False, True])
def test_a_model_behind_the_same_object_is_looked_at_anew(given, deep):
    """As it was, a random one that took the place of another was found out in the 64th call."""
    net, x, penalty = Trunk(), torch.randn(16, 6), penalty_of("tv")
    holder = Predictor(net)
    model = {"module": net, "method": holder.predict, "object": holder, "lambda": lambda x: holder.predict(x)}[given]
    penalty(model, x)
    if deep or given == "module":
        exchange(net)
    else:
        holder.net = copy.deepcopy(net)
        exchange(holder.net)
    with pytest.raises(ValueError, match="random"):
        penalty(model, x)


def test_a_model_at_the_place_of_one_that_is_no_more_is_another():
    """As it was, outputs of a new one with active Dropout served as f(x), if memory was used again."""
    for _ in range(1000):
        net = Trunk()
        before, place = as_found([net]), id(net)
        net = None
        net = Trunk()
        if id(net) == place:
            break
    else:
        pytest.skip("no place in memory was used again")
    assert as_found([net]) == as_found([net])
    assert as_found([net]) != before


class Averaging:
    """A trainer that copies an average of its model anew in each step."""

    def __init__(self, net):
        self.net, self.average = net, None

    def predict(self, x):
        self.average = copy.deepcopy(self.net)
        return self.net(x)


class Remaking(Trunk):
    def forward(self, x):
        self.activation = nn.ReLU()
        return self.activation(super().forward(x))


@pytest.mark.parametrize("kind", ["method", "module"])
def test_a_model_whose_parts_are_others_in_each_call_is_not_looked_at_in_each(kind, monkeypatch):
    looks, look = [], Inspector.look
    monkeypatch.setattr(Inspector, "look", lambda *args, **how: looks.append(1) or look(*args, **how))
    net, penalty = (Remaking() if kind == "module" else Trunk()), penalty_of("tv")
    trainer = Averaging(net)
    for _ in range(3 * AGAIN):
        trainer.average = copy.deepcopy(net)
        if kind == "module":
            net.activation = nn.ReLU()
        penalty(net if kind == "module" else trainer.predict, torch.randn(4, 6))
    assert 1 <= len(looks) <= OFTEN + 4
