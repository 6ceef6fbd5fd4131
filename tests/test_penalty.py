"""The settings of a penalty and what the user sees of it."""

import copy
import math

import pytest
import torch
from torch import nn
from zoo import ASCENTS, METHODS, Seen, bare, dropout_net, gradients, mlp, penalty_of, same, traces

from torchlipreg import LipschitzPenalty

LOCAL = ("tv", "ptv")

# ---- interval, weight, update --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_interval_applies_the_penalty_in_every_kth_call_times_k(method):
    net, x = mlp(), torch.randn(8, 6)
    every, third = penalty_of(method), penalty_of(method, interval=3)
    values = [third(net, x) for _ in range(7)]
    assert [bool(v > 0) for v in values] == [True, False, False, True, False, False, True]
    torch.testing.assert_close(values[0], 3 * every(net, x))
    assert not values[1].requires_grad


def test_interval_keeps_the_mean_gradient():
    net, x = mlp().double(), torch.randn(8, 6, dtype=torch.float64)
    sums = []
    for interval in (1, 4):
        net.zero_grad()
        penalty = penalty_of("tv", interval=interval, input_norm=math.inf, ascent_steps=8)
        for _ in range(40):
            value = penalty(net, x)
            if value.requires_grad:
                value.backward()
        sums.append(gradients(net))
    torch.testing.assert_close(*sums, rtol=0.05, atol=0.05 * float(sums[0].abs().max()))


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.forwards = mlp(), Seen()

    def forward(self, x):
        self.forwards.append(1)
        return self.net(x)


@pytest.mark.parametrize("method", METHODS)
def test_without_weight_there_is_no_forward(method):
    net, x, penalty = Counting(), torch.randn(8, 6), penalty_of(method, weight=0.0)
    before = penalty.state_dict()
    value = penalty(net, x)
    assert torch.equal(value, torch.zeros(()))
    assert len(net.forwards) == 0
    assert same(penalty.state_dict(), before)
    (net(x).sum() + value).backward()
    penalty.weight = 1.0
    assert penalty(net, x) > 0


def train(net, penalty, steps=5):
    """Train with Dropout and return all that the run leaves behind, the random state included."""
    torch.manual_seed(1)
    optimizer = torch.optim.Adam(net.parameters())
    for _ in range(steps):
        x, y = torch.randn(8, 6), torch.randint(3, (8,))
        out = net(x)
        loss = nn.functional.cross_entropy(out, y)
        if penalty is not None:
            loss = loss + penalty(net, x, out)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return traces(net)


@pytest.mark.parametrize("method", METHODS)
def test_without_weight_training_is_bit_for_bit_the_plain_run(method):
    net = dropout_net()
    runs = [train(copy.deepcopy(net), p) for p in (None, penalty_of(method, weight=0.0), penalty_of(method))]
    keys = ("buffers", "parameters", "random")
    plain, unweighted, weighted = ({k: run[k] for k in keys} for run in runs)
    assert same(unweighted, plain)
    assert not same(weighted, plain)
    assert same(weighted["random"], plain["random"])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ascent", ASCENTS)
@pytest.mark.parametrize("radius", [0.1, 0.0])
def test_without_update_the_pairs_of_the_last_call_come_again(method, ascent, radius):
    net, x = mlp().double(), torch.randn(8, 6, dtype=torch.float64)
    penalty = penalty_of(method, ascent=ascent, radius=radius)
    for _ in range(3):
        value = penalty(net, x)
    estimate, state = penalty.estimate, penalty.state_dict()
    for _ in range(2):
        again = penalty(net, x, update=False)
        torch.testing.assert_close(again, value, rtol=1e-12, atol=0)
        torch.testing.assert_close(penalty.estimate, estimate, rtol=1e-12, atol=0)
    state["estimate"] = penalty.state_dict()["estimate"]
    assert same(penalty.state_dict(), state)
    gradient = [torch.autograd.grad(v, net[0].weight)[0] for v in (value, again)]
    torch.testing.assert_close(*gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_without_update_in_the_first_call(method):
    net, x = mlp(), torch.randn(8, 6)
    penalty, fresh = penalty_of(method), penalty_of(method)
    assert torch.equal(penalty(net, x, update=False), penalty(net, x, update=False))
    assert penalty.pairs is None
    assert torch.equal(penalty(net, x), fresh(net, x))


def test_without_update_a_skipped_call_stays_skipped():
    net, x, penalty = mlp(), torch.randn(8, 6), penalty_of("tv", interval=2)
    values = [[penalty(net, x), penalty(net, x, update=False)] for _ in range(4)]
    assert [[bool(v > 0) for v in pair] for pair in values] == [[True, True], [False, False]] * 2


@pytest.mark.parametrize("method", METHODS)
def test_a_closure_of_lbfgs_sees_one_function(method):
    net, x, y = mlp(), torch.randn(8, 6), torch.randint(3, (8,))
    penalty = penalty_of(method, weight=0.01)
    optimizer = torch.optim.LBFGS(net.parameters(), max_iter=10, line_search_fn="strong_wolfe")
    losses = []
    for _ in range(3):
        penalty(net, x)
        pairs = penalty.pairs

        def closure():
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(x), y) + penalty(net, x, update=False)
            loss.backward()
            return loss

        losses.append([optimizer.step(closure).detach(), closure().detach()])
        assert penalty.pairs is pairs
    assert all(after < before for before, after in losses)


# ---- domain, noise, seeds ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ascent", ASCENTS)
@pytest.mark.parametrize("norm", [1, 2, math.inf])
@pytest.mark.parametrize("anchored", [True, False])
def test_pairs_stay_within_the_bounds(method, ascent, norm, anchored):
    net, x = mlp(), torch.rand(8, 6)
    step_size = {} if ascent == "power" else {"step_size": 10.0}
    penalty = penalty_of(
        method, ascent=ascent, input_norm=norm, bounds=(0, 1), radius=0.8, noise=1.0, anchored=anchored, **step_size
    )
    seen = Seen()
    net[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    for _ in range(3):
        assert penalty(net, x).isfinite()
        shown = (
            penalty.pairs if ascent == "nesterov" else [*penalty.pairs, *seen.items]
        )  # which looks ahead, past the bounds
        for z in shown:
            assert z.min() >= 0
            assert z.max() <= 1
    unbounded = penalty_of(
        method, ascent=ascent, input_norm=norm, radius=0.8, noise=1.0, anchored=anchored, **step_size
    )
    unbounded(net, x)
    assert unbounded.pairs.x_prime.min() < 0


@pytest.mark.parametrize("method", METHODS)
def test_noise_moves_the_start_of_free_points_only(method):
    x = torch.zeros(500, 6) + torch.arange(500.0).unsqueeze(1)
    flat = torch.tensor(1.0, requires_grad=True)
    quiet, noisy = (
        bare(method, num_pairs=500, radius=1e-1, noise=s, ascent="sgd", step_size=1e-30) for s in (0.0, 2.0)
    )
    for penalty in (quiet, noisy):
        penalty(lambda z: flat * z, x)
    difference = [b - a for a, b in zip(quiet.pairs, noisy.pairs, strict=True)]
    if method in LOCAL:
        assert torch.equal(difference[0], torch.zeros_like(x))
    if method != "ptv":  # which projects on its sphere
        torch.testing.assert_close(difference[1].std(), torch.tensor(2.0), rtol=0.1, atol=0)
        assert difference[1].mean().abs() < 0.2


@pytest.mark.parametrize("method", METHODS)
def test_seeds(method):
    net, x = mlp(), torch.randn(8, 6)

    def pairs(seed):
        torch.manual_seed(seed + 7)  # must not matter
        penalty = penalty_of(method, seed=seed)
        for _ in range(3):
            penalty(net, x)
        return penalty.pairs

    assert same(pairs(0), pairs(0))
    assert not same(pairs(0), pairs(1))


# ---- what the user looks at ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("exponent", [1, 2])
def test_the_estimate_is_the_largest_quotient_of_the_pairs(method, exponent):
    net, x = mlp(), torch.randn(8, 6)
    penalty = penalty_of(method, weight=0.5, exponent=exponent)
    assert penalty.estimate == 0
    assert penalty.pairs is None
    value = penalty(net, x)
    a, b = penalty.pairs
    with torch.no_grad():
        q = (net(a) - net(b)).norm(dim=1) / (a - b).norm(dim=1)
    torch.testing.assert_close(penalty.estimate, q.max(), rtol=1e-4, atol=0)
    reduced = q.max() ** exponent if method == "max" else (q**exponent).mean()
    torch.testing.assert_close(value.detach(), 0.5 * reduced, rtol=1e-4, atol=0)


def test_the_gradient_goes_to_the_parameters_only():
    net, x = mlp(), torch.randn(8, 6, requires_grad=True)
    penalty_of("tv")(net, x).backward()
    assert x.grad is None
    assert gradients(net).abs().max() > 0


def test_repr_rebuilds_the_penalty():
    penalty = LipschitzPenalty("ptv", 0.5, radius=0.2, input_norm=math.inf, bounds=(0, 1), interval=2, seed=3)
    twin = eval(repr(penalty), {"LipschitzPenalty": LipschitzPenalty, "inf": math.inf})
    assert repr(twin) == repr(penalty)
    assert twin.settings == penalty.settings
    assert (twin.weight, twin.radius) == (0.5, 0.2)
    for shown in ("'ptv'", "weight=0.5", "radius=0.2", "input_norm=inf", "interval=2"):
        assert shown in repr(penalty)


def test_repr_names_a_function_without_its_address():
    assert "output=mlp," in repr(LipschitzPenalty("tv", output=mlp))


def test_what_the_last_call_returned_and_whether_it_was_added():
    penalty, net, x = LipschitzPenalty("max", 0.5, interval=2), mlp(), torch.randn(8, 6)
    assert penalty.value is None
    value = penalty(net, x)
    assert torch.equal(penalty.value, value.detach())
    assert not penalty.value.requires_grad
    assert not penalty.was_added
    assert penalty(net, x) == 0  # between the calls of an interval
    assert torch.equal(penalty.value, value.detach())
    (value + net(x).sum()).backward()
    assert penalty.was_added


CORNERED = {"tv": {}, "ptv": {}, "free": {"method": "tv", "anchored": False}, "sum": {"radius": 0.1, "num_pairs": 64}}


@pytest.mark.parametrize("left_the_limit", [False, True])
@pytest.mark.parametrize("kind", CORNERED)
@pytest.mark.parametrize("coordinates", [1, 2])
@pytest.mark.parametrize("input_norm", [1, math.inf])
def test_no_pair_collapses_in_a_corner_of_the_bounds(kind, coordinates, input_norm, left_the_limit):
    """As it was, half of them did where there is one coordinate, and counted as zero."""
    torch.manual_seed(0)
    net, x = nn.Linear(coordinates, 1).double(), torch.zeros(256, coordinates, dtype=torch.float64)
    nn.init.ones_(net.weight)  # steepest into the bounds: nothing holds a pair back
    settings = {"method": kind, "bounds": (0, 1), "input_norm": input_norm, "step_size": None} | CORNERED[kind]
    penalty = bare(**settings)
    if left_the_limit:
        penalty.radius = 0.0
        penalty(net, x)
        penalty.radius = 0.1
    penalty(net, x, update=not left_the_limit)
    assert (penalty.pairs.distance(input_norm) > 1e-6).all()
    assert penalty.pairs.x_prime.min() >= 0
    if kind in LOCAL and not left_the_limit:
        exact = coordinates if input_norm == math.inf else 1.0
        assert penalty.estimate.item() == pytest.approx(exact)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_zero_is_float32_whatever_the_default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        penalty = LipschitzPenalty(weight=0.0)
        assert penalty(nn.Linear(2, 1), torch.rand(4, 2)).dtype == penalty.estimate.dtype == torch.float32
    finally:
        torch.set_default_dtype(before)
