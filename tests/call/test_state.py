"""What a penalty remembers: saving, resuming, copying, and no more than that."""

import copy
import gc
import math
import pickle

import pytest
import torch
from torch import Tensor, nn
from zoo import ASCENTS, METHODS, bare, dropout_net, mlp, penalty_of, same, traces

from torchlipreg import DiscrepancyWeight, RadiusDecay

PLAIN = (Tensor, int, float, str, bool, type(None))


class Run:
    """A training run with Dropout, a schedule and all that a checkpoint holds."""

    def __init__(self, method, ascent, **settings):
        torch.manual_seed(0)
        self.net = dropout_net()
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=0.01)
        self.penalty = penalty_of(method, 0.1, ascent=ascent, radius=0.2, **settings)
        self.schedules = [DiscrepancyWeight(self.penalty, 0.5, 0.01), RadiusDecay(self.penalty)]

    def parts(self):
        return {"net": self.net, "optimizer": self.optimizer, "penalty": self.penalty}

    def steps(self, count):
        values = []
        for i in range(count):
            x, y = torch.randn(8, 6), torch.randint(3, (8,))
            out = self.net(x)
            value = self.penalty(self.net, x, out)
            self.optimizer.zero_grad()
            (nn.functional.cross_entropy(out, y) + value).backward()
            self.optimizer.step()
            self.schedules[0].step(i % 2)
            self.schedules[1].step()
            values.append(value.detach())
        return values

    def save(self, path):
        state = {name: part.state_dict() for name, part in self.parts().items()}
        torch.save({**state, "random": torch.get_rng_state()}, path)

    def load(self, path, spoil=lambda state: None):
        state = torch.load(path, weights_only=True)
        spoil(state["penalty"])
        for name, part in self.parts().items():
            part.load_state_dict(state[name])
        torch.set_rng_state(state["random"])
        return self


def resumed_equals_uninterrupted(path, method, ascent, spoil=lambda state: None, **settings):
    run = Run(method, ascent, **settings)
    run.steps(3)
    run.save(path)
    uninterrupted = run.steps(4), traces(run.net), run.penalty.state_dict(), run.penalty.pairs
    run = Run(method, ascent, **settings).load(path, spoil)
    resumed = run.steps(4), traces(run.net), run.penalty.state_dict(), run.penalty.pairs
    for parts in (uninterrupted, resumed):
        parts[1].pop("identity"), parts[1].pop("versions")
    return same(resumed, uninterrupted)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ascent", ASCENTS)
@pytest.mark.parametrize("settings", [{}, {"interval": 2}, {"anchored": False, "noise": 0.1}], ids=str)
def test_a_resumed_run_is_bit_for_bit_the_uninterrupted_one(tmp_path, method, ascent, settings):
    assert resumed_equals_uninterrupted(tmp_path / "checkpoint", method, ascent, **settings)


def shift_pairs(state):
    state["ranks"][0]["pairs"]["x"] += 1e-3


def forget_ascent(state):
    for memory in state["ranks"][0]["ascent"].values():
        memory["x"].zero_()
        memory["x_prime"].zero_()


def redraw(state):
    state["ranks"][0]["stuck"].fill_(True)


def change(name):
    return lambda state: state.update({name: state[name] + 1})


@pytest.mark.parametrize(
    ("method", "ascent", "spoil"),
    [
        *(("max", ascent, shift_pairs) for ascent in ASCENTS),
        *(("sum", ascent, forget_ascent) for ascent in ASCENTS if ascent != "power"),
        ("sum", "sgd", redraw),
        *((method, "power", change(name)) for method in ("tv", "ptv") for name in ("calls", "weight", "radius")),
        *((method, "sgd", change("weight")) for method in ("max", "sum")),
    ],
)
def test_a_resumed_run_needs_every_entry(tmp_path, method, ascent, spoil):
    assert not resumed_equals_uninterrupted(tmp_path / "checkpoint", method, ascent, spoil)


def test_a_resumed_run_needs_the_count_of_calls(tmp_path):
    assert not resumed_equals_uninterrupted(tmp_path / "checkpoint", "max", "sgd", change("calls"), interval=2)


# ---- the form of the state -----------------------------------------------------------------------------------------


def leaves(value):
    if isinstance(value, dict):
        return [leaf for key, v in value.items() for leaf in [key, *leaves(v)]]
    return [leaf for v in value for leaf in leaves(v)] if isinstance(value, list) else [value]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ascent", ASCENTS)
@pytest.mark.parametrize("calls", [0, 2])
def test_the_state_holds_plain_types_and_survives_a_round_trip(tmp_path, method, ascent, calls):
    penalty = penalty_of(method, ascent=ascent, output=lambda y: y)
    for _ in range(calls):
        penalty(mlp(), torch.randn(8, 6))
    state = penalty.state_dict()
    assert all(type(leaf) in PLAIN for leaf in leaves(state))
    torch.save(state, tmp_path / "state")
    loaded = torch.load(tmp_path / "state", weights_only=True)
    assert same(loaded, state)
    twin = penalty_of(method, 7.0, ascent=ascent)
    twin.load_state_dict(loaded)
    assert same(twin.state_dict(), state)


def test_a_saved_state_does_not_follow_later_calls():
    net, x, penalty = mlp(), torch.randn(8, 6), penalty_of("max", ascent="adam")
    penalty(net, x)
    state = penalty.state_dict()
    kept = copy.deepcopy(state)
    twin = penalty_of("max", ascent="adam")
    twin.load_state_dict(state)
    for _ in range(3):
        penalty(net, x)
        twin(net, x)
    assert same(state, kept)


@pytest.mark.compiler
@pytest.mark.parametrize("method", METHODS)
def test_a_state_can_come_before_the_first_call(method):
    net, x = mlp(), torch.randn(8, 6)
    old, new = penalty_of(method), penalty_of(method)
    old(net, x)
    new.load_state_dict(old.state_dict())
    torch._dynamo.reset()
    compiled = torch.compile(net, backend="eager")
    torch.testing.assert_close(new(compiled, x), old(net, x))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("calls", [0, 2])
def test_copies_go_on_alike_and_apart(method, copied, calls):
    net, x = mlp(), torch.randn(8, 6)
    penalty = penalty_of(method, ascent="adam")
    for _ in range(calls):
        penalty(net, x)
    twin = copied(penalty)
    assert same(penalty.state_dict(), twin.state_dict())
    for _ in range(3):
        assert torch.equal(penalty(net, x), twin(net, x))
    before = twin.state_dict()
    penalty(net, x)
    assert same(twin.state_dict(), before)


# ---- states that do not fit ----------------------------------------------------------------------------------------

OTHERS = {
    "another version": ("version", lambda state: state.update(version=0)),
    "another method": ("method", lambda state: state.update(method="sum")),
    "another ascent": ("ascent", lambda state: state.update(ascent="adam")),
    "another norm": ("input_norm", lambda state: state.update(input_norm=math.inf)),
    "another size": ("num_pairs", lambda state: state.update(num_pairs=5)),
    "an entry lost": ("ranks", lambda state: state.pop("ranks")),
    "a weight that is none": ("weight", lambda state: state.update(weight=-1.0)),
    "a radius that is none": ("radius", lambda state: state.update(radius=math.nan, weight=3.0)),
}


@pytest.mark.parametrize("case", OTHERS)
def test_a_state_that_does_not_fit_changes_nothing(case):
    named, spoil = OTHERS[case]
    net, x, penalty = mlp(), torch.randn(8, 6), penalty_of("max")
    penalty(net, x)
    state, before = penalty.state_dict(), penalty.state_dict()
    spoil(state)
    with pytest.raises(ValueError, match=named) as error:
        penalty.load_state_dict(state)
    assert "`" in str(error.value)
    assert same(penalty.state_dict(), before)


@pytest.mark.parametrize("state", [None, [], 3, "state"])
def test_a_state_that_is_no_dict(state):
    with pytest.raises(TypeError, match="`state`"):
        penalty_of("max").load_state_dict(state)


def test_pairs_of_another_shape_are_named_in_the_next_call():
    old, new = penalty_of("max"), penalty_of("max")
    old(mlp(), torch.randn(8, 6))
    new.load_state_dict(old.state_dict())
    before = new.state_dict()
    with pytest.raises(ValueError, match=r"`x`.*\(6,\).*\(8, 4\)"):
        new(mlp(4), torch.randn(8, 4))
    assert same(new.state_dict(), before)


# ---- schedules, counters, memory -----------------------------------------------------------------------------------


def test_schedules_resume():
    def build():
        penalty = bare("tv", 0.5, radius=1.0)
        return penalty, DiscrepancyWeight(penalty, 0.9, 0.1, warmup=True), RadiusDecay(penalty)

    accuracies = [0.5, 0.8, 0.95, 0.95, 0.5, 0.95]
    penalty, weight, radius = build()
    seen = []
    for a in accuracies:
        weight.step(a)
        radius.step()
        seen.append((penalty.weight, penalty.radius))
    for stop in range(len(accuracies)):
        penalty, weight, radius = build()
        for a in accuracies[:stop]:
            weight.step(a)
            radius.step()
        states = pickle.loads(pickle.dumps((weight.state_dict(), radius.state_dict())))
        penalty, weight, radius = build()
        weight.load_state_dict(states[0])
        radius.load_state_dict(states[1])
        for a, wanted in zip(accuracies[stop:], seen[stop:], strict=True):
            weight.step(a)
            radius.step()
            assert (penalty.weight, penalty.radius) == wanted


@pytest.mark.parametrize("schedule", [lambda p: DiscrepancyWeight(p, 0.9, 0.1), RadiusDecay])
@pytest.mark.parametrize("state", [None, {}, {"weight": 1.0}, {"radius": 1.0, "more": 2}])
def test_schedules_refuse_other_states(schedule, state):
    penalty = bare("tv", 0.5)
    with pytest.raises(ValueError, match="`state`"):
        schedule(penalty).load_state_dict(state)
    assert (penalty.weight, penalty.radius) == (0.5, 0.1)


def test_the_count_of_calls():
    net, x, penalty = mlp(), torch.randn(8, 6), penalty_of("tv", interval=3)
    counts = []
    for update, context in [(True, torch.enable_grad), (False, torch.enable_grad), (True, torch.no_grad)] * 3:
        with context():
            penalty(net, x, update=update)
        counts.append(penalty.state_dict()["calls"])
    assert counts == [1, 1, 1, 2, 2, 2, 3, 3, 3]


def tensors():
    gc.collect()
    alive = [o for o in gc.get_objects() if type(o) in (Tensor, nn.Parameter)]
    return len(alive), sum(t.numel() for t in alive)


@pytest.mark.parametrize(("method", "radius"), [*((method, 0.1) for method in METHODS), ("tv", 0.0)])
def test_memory_is_flat_over_100_steps(method, radius):
    net, penalty, x = dropout_net(), penalty_of(method, ascent="adam", radius=radius), torch.randn(8, 6)
    counts, last = [], None
    for i in range(100):
        out = net(x)
        last = penalty(net, x, out)
        (out.sum() + last).backward()
        assert penalty.estimate > 0
        if i in (20, 60, 99):
            counts.append(tensors())
    assert len(set(counts)) == 1


@pytest.mark.parametrize("method", ["tv", "ptv"])
def test_the_ascent_state_of_pairs_that_live_for_one_call_goes_with_them(method):
    net, x = mlp(), torch.randn(8, 6)
    alive = set()
    for ascent in ASCENTS:
        penalty = penalty_of(method, ascent=ascent)
        penalty(net, x)
        alive.add(tensors())
    assert len(alive) == 1


@pytest.mark.parametrize(("ranks", "looks_again"), [(1, False), (2, False), (3, True)])
def test_all_ranks_look_at_the_next_batch_together_if_one_of_them_has_no_pairs(monkeypatch, ranks, looks_again):
    penalty = penalty_of("max", num_pairs=2)
    penalty(mlp(), torch.randn(8, 6))
    state = penalty.state_dict()
    monkeypatch.setattr("torchlipreg.call.saved.world_size", lambda: ranks)
    floors = []
    for rank in range(ranks):
        monkeypatch.setattr("torchlipreg.call.state.rank", lambda rank=rank: rank)
        loaded = penalty_of("max", num_pairs=2)
        loaded.load_state_dict(state)
        floors.append(loaded._state.floor)
    assert floors == [None if looks_again else state["floor"]] * ranks


class Photograph(Tensor):
    """As libraries of images have them: a tensor with notes of its own, which operations keep."""


@pytest.mark.parametrize("method", METHODS)
def test_inputs_of_another_class_stay_out_of_the_state(method, tmp_path):
    net, x = mlp(), torch.randn(8, 6)
    penalties = penalty_of(method), penalty_of(method)
    values = [p(net, z, net(z)) for p, z in zip(penalties, (x, x.as_subclass(Photograph)), strict=True)]
    assert type(values[1]) is Tensor
    torch.testing.assert_close(values[1], values[0], rtol=0, atol=0)
    assert type(penalties[1].pairs[1]) is type(penalties[1].estimate) is Tensor
    torch.save(penalties[1].state_dict(), tmp_path / "state.pt")
    penalty_of(method).load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))


@pytest.mark.parametrize("crosses", ["out", "in"])
@pytest.mark.parametrize("ascent", ["sgd", "nesterov", "adam"])
@pytest.mark.parametrize("method", ["max", "sum"])
def test_an_ascent_starts_anew_where_the_radius_crosses_the_limit(method, ascent, crosses):
    """Nesterov's memory of unit directions made pairs at a hundredth jump by nearly one."""
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double(), torch.rand(8, 4, dtype=torch.float64)
    first, then = (0.0, 0.01) if crosses == "out" else (0.01, 0.0)
    penalty = bare(method, radius=first, num_pairs=8, input_norm=2, step_size=1e-6, ascent=ascent)
    for _ in range(5):
        penalty(net, x)
    penalty.radius = then
    before, state = penalty.pairs, penalty.state_dict()
    assert before.distance(2).allclose(torch.full((8,), then or 1.0, dtype=torch.float64))
    fresh = bare(method, radius=then, num_pairs=8, input_norm=2, step_size=1e-6, ascent=ascent)
    fresh.load_state_dict(state)
    penalty(net, x)
    fresh(net, x)
    assert torch.equal(penalty.pairs.x_prime, fresh.pairs.x_prime)
    assert (penalty.pairs.x_prime - before.x_prime).abs().max() < 1e-4


@pytest.mark.parametrize("method", ["max", "sum"])
def test_pairs_that_leave_the_limit_for_no_radius_stay_in_the_bounds_until_they_are_drawn(method):
    torch.manual_seed(0)
    net, x = nn.Linear(4, 3), torch.rand(8, 4)
    penalty = bare(method, radius=0.0, num_pairs=8, bounds=(0.0, 1.0))
    penalty(net, x)
    penalty.radius = None
    penalty(net, x, update=False)
    assert penalty.pairs.x_prime.min() >= 0
    assert penalty.pairs.x_prime.max() <= 1


@pytest.mark.parametrize("method", ["max", "sum"])
def test_pairs_that_leave_the_limit_get_the_distance_of_the_radius(method):
    """As it was, they stayed directions of unit length, a distance of one apart."""
    torch.manual_seed(0)
    net, x = nn.Linear(4, 3).double(), torch.rand(8, 4, dtype=torch.float64)
    penalty = bare(method, radius=0.0, num_pairs=8, input_norm=2, step_size=1e-9)
    penalty(net, x)
    penalty.radius = 0.1
    assert penalty.pairs.distance(2).allclose(torch.full((8,), 0.1, dtype=torch.float64))
    penalty(net, x)
    assert penalty.pairs.distance(2).allclose(torch.full((8,), 0.1, dtype=torch.float64), atol=1e-6)
    penalty.radius = 0.0
    penalty(net, x)
    penalty.radius = None
    penalty(net, x)
    assert (torch.cdist(penalty.pairs.x_prime, x).amin(1) < 1e-6).all()


@pytest.mark.parametrize("method", ["tv", "ptv"])
@pytest.mark.parametrize("anchored", [True, False])
def test_the_last_calls_pairs_leave_the_limit_too(method, anchored):
    """As it was, a direction of length one was taken for a pair: ten radii apart, and outside of the bounds."""
    torch.manual_seed(0)
    net, x = nn.Linear(4, 3).double(), torch.rand(8, 4, dtype=torch.float64)
    penalty = bare(method, 1.0, radius=0.0, input_norm=2, bounds=(0, 1), anchored=anchored)
    penalty(net, x)
    penalty.radius = 0.1
    again = penalty(net, x, update=False)
    assert (penalty.pairs.distance(2) < 0.1 + 1e-9).all()
    assert penalty.pairs.x_prime.min() >= 0
    assert penalty.pairs.x_prime.max() <= 1
    q = (net(penalty.pairs.x) - net(penalty.pairs.x_prime)).norm(dim=1) / penalty.pairs.distance(2)
    torch.testing.assert_close(again, q.square().mean())


def test_a_one_sided_radius_is_never_in_the_limit():
    """Its pairs are held at the floor: they must not become directions, outside of the bounds."""
    torch.manual_seed(0)
    net, x = nn.Linear(4, 3), torch.rand(8, 4)
    penalty = bare("tv", radius=0.1, bounds=(0, 1), one_sided=True)
    penalty(net, x)
    before = penalty.pairs
    penalty.radius = 1e-12
    with pytest.warns(UserWarning, match="one_sided"):
        penalty(net, x, update=False)
    assert torch.equal(penalty.pairs.x_prime, before.x_prime)
