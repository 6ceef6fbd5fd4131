"""Ascent: each rule against its slow twin, and the laws of power steps."""

import math

import oracles
import pytest
import torch

from torchlipreg.geometry.ascent import ascend, where_memory
from torchlipreg.geometry.norms import row_norm
from torchlipreg.geometry.pairs import PairSet, on_sphere
from torchlipreg.geometry.quotient import PairQuotient, Resolution
from torchlipreg.geometry.rules import SGD, Adam, Nesterov, Power

NORMS = [1, 2, math.inf]
RULES = [Power(2, anchored=False), SGD(0.1, 0.9), Nesterov(0.1), Adam(0.01)]


def draw(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def f(x):
    """A smooth network."""
    return torch.tanh(x @ draw(8, 4, seed=1).T) @ draw(3, 8, seed=2).T


def draw_pairs(n=5, dim=4):
    return PairSet(draw(n, dim, seed=3), draw(n, dim, seed=4))


def climb(pairs, rule, steps, *, f=f, p=2, q=2, anchored=False, project=lambda z: z, state=None):
    quotient = quotient_of(f, p, q)
    objective = quotient.height if isinstance(rule, Power) else quotient.square
    state = rule.start(pairs) if state is None else state
    return ascend(pairs, state, rule, objective, steps=steps, anchored=anchored, project=project)


def quotient_of(f, p, q, fx=None):
    return PairQuotient(f, p, q, Resolution(None, 1e-12), fx)


def quotients(pairs, f=f, p=2, q=2):
    return quotient_of(f, p, q)(pairs)


def assert_pairs_equal(actual, expected):
    torch.testing.assert_close(actual.x, torch.stack([x for x, _ in expected]), rtol=0, atol=1e-12)
    torch.testing.assert_close(actual.x_prime, torch.stack([x_prime for _, x_prime in expected]), rtol=0, atol=1e-12)


# ---- rules against their slow twins ---------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_momentum_is_algorithm_1s(momentum):
    pairs = draw_pairs()
    slow, velocities = list(zip(*pairs, strict=True)), [(torch.zeros(4), torch.zeros(4))] * 5
    for _ in range(6):
        slow, velocities = oracles.sgdm(f, slow, velocities, 0.3, momentum)
    assert_pairs_equal(climb(pairs, SGD(0.3, momentum), 6)[0], slow)


@pytest.mark.parametrize("steps", [1, 2, 3, 10])
def test_nesterov_is_algorithm_2(steps):
    pairs = draw_pairs()
    slow = oracles.nesterov(f, zip(*pairs, strict=True), 0.3, steps)
    assert_pairs_equal(climb(pairs, Nesterov(0.3), steps)[0], slow)


def test_nesterov_accelerates():
    # uphill on −½ zᵀHz, ill-conditioned: the error falls like 1/k², not like 1/k
    curvature = torch.tensor([1.0, 1e-3], dtype=torch.float64)
    start = PairSet(torch.ones(1, 2, dtype=torch.float64), -torch.ones(1, 2, dtype=torch.float64))

    def error_after(rule):
        def objective(z):
            height = -(curvature * (z.x**2 + z.x_prime**2)).sum(1) / 2
            return height, torch.ones_like(height)

        pairs, _ = ascend(start, rule.start(start), rule, objective, steps=60, anchored=False, project=lambda z: z)
        return -objective(pairs)[0].item()

    assert error_after(Nesterov(1.0)) < 0.5 * error_after(SGD(1.0, 0.0))


def test_adam_is_torchs():
    pairs = draw_pairs()
    points = [z.clone().requires_grad_() for z in pairs]
    adam = torch.optim.Adam(points, lr=0.05, maximize=True)
    for _ in range(8):
        adam.zero_grad()
        (quotients(PairSet(*points)) ** 2).sum().backward()
        adam.step()
    fast = climb(pairs, Adam(0.05), 8)[0]
    torch.testing.assert_close(fast.x, points[0].detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(fast.x_prime, points[1].detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("rule", RULES, ids=lambda r: type(r).__name__)
def test_steps_in_one_call_or_in_several_are_the_same(rule):
    pairs = draw_pairs()
    at_once, _ = climb(pairs, rule, 5)
    state = None
    for steps in (2, 1, 2):
        pairs, state = climb(pairs, rule, steps, state=state)
    assert torch.equal(at_once.x, pairs.x)
    assert torch.equal(at_once.x_prime, pairs.x_prime)


@pytest.mark.parametrize("rule", RULES, ids=lambda r: type(r).__name__)
def test_pairs_do_not_see_one_another(rule):
    pairs = draw_pairs()
    together, _ = climb(pairs, rule, 3)
    alone = [climb(pairs.map(lambda z, i=i: z[i : i + 1]), rule, 3)[0] for i in range(5)]
    torch.testing.assert_close(together.x_prime, torch.cat([a.x_prime for a in alone]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("rule", RULES, ids=lambda r: type(r).__name__)
def test_a_fresh_pair_starts_with_a_fresh_state(rule):
    pairs, fresh = draw_pairs(), PairSet(draw(5, 4, seed=8), draw(5, 4, seed=9))
    moved, state = climb(pairs, rule, 3)
    keep = torch.tensor([True, True, False, True, True])
    mixed, mixed_state = moved.where(keep, fresh), where_memory(keep, state, rule.start(fresh))
    after, _ = climb(mixed, rule, 2, state=mixed_state)
    torch.testing.assert_close(after.x[2], climb(fresh, rule, 2)[0].x[2])
    torch.testing.assert_close(after.x[:2], climb(pairs, rule, 5)[0].x[:2])


# ---- power steps ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("q", NORMS)
def test_a_power_step_up_the_difference_is_one_up_the_squared_quotient_at_its_distance(p, q, dtype, tolerance):
    pairs, rule = draw_pairs().map(lambda z: z.to(dtype)), Power(p, anchored=True)
    weights = draw(8, 4, seed=1).to(dtype), draw(3, 8, seed=2).to(dtype)

    def net(x):
        return torch.tanh(x @ weights[0].T) @ weights[1].T

    def squared_quotient(z):
        squares = (row_norm(net(z.x_prime) - net(z.x), q) / pairs.distance(p)) ** 2
        return squares, torch.ones_like(squares)

    fast = climb(pairs, rule, 1, f=net, p=p, q=q, anchored=True)[0]
    slow = ascend(pairs, {}, rule, squared_quotient, steps=1, anchored=True, project=lambda z: z)[0]
    torch.testing.assert_close(fast.x_prime, slow.x_prime, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("q", NORMS)
def test_pairs_that_do_not_count_are_as_if_left_out(q):
    pairs, counts = draw_pairs(), torch.tensor([True, False, True, True, False])
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    fx = torch.where(counts[:, None], scale * f(pairs.x), math.nan)
    masked = quotient_of(lambda x: scale * f(x), 2, q, fx)(pairs, counts)
    left = quotient_of(lambda x: scale * f(x), 2, q, fx[counts])(pairs.map(lambda z: z[counts]))
    torch.testing.assert_close(masked[counts], left, rtol=0, atol=1e-12)
    assert (masked[~counts] == 0).all()
    gradients = [torch.autograd.grad((v**2).sum(), scale, retain_graph=True)[0] for v in (masked, left)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


@pytest.mark.parametrize("p", NORMS)
def test_anchored_power_step_is_its_slow_twins(p):
    pairs = draw_pairs()
    fast = climb(pairs, Power(p, anchored=True), 1, p=p, anchored=True)[0]
    slow = [(x, oracles.power_step(f, x, x_prime, p)) for x, x_prime in zip(*pairs, strict=True)]
    assert_pairs_equal(fast, slow)


@pytest.mark.parametrize("p", NORMS)
def test_power_steps_keep_the_distance_and_what_they_turn_around(p):
    pairs = draw_pairs()
    distance = pairs.distance(p)
    anchored = climb(pairs, Power(p, anchored=True), 1, p=p, anchored=True)[0]
    free = climb(pairs, Power(p, anchored=False), 1, p=p)[0]
    centre = draw(5, 4, seed=7)
    centred = climb(pairs, Power(p, anchored=False, centre=centre, radius=0.2), 1, p=p)[0]
    torch.testing.assert_close(anchored.distance(p), distance)
    torch.testing.assert_close(free.distance(p), distance)
    torch.testing.assert_close(centred.distance(p), torch.full_like(distance, 0.4))
    assert torch.equal(anchored.x, pairs.x)
    torch.testing.assert_close(free.x + free.x_prime, pairs.x + pairs.x_prime)
    torch.testing.assert_close((centred.x + centred.x_prime) / 2, centre)
    for moved in (anchored, free, centred):
        assert (moved.x_prime - pairs.x_prime).abs().amax(1).min() > 1e-6


@pytest.mark.parametrize("q", NORMS)
@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("anchored", [True, False])
def test_on_a_linear_map_a_power_step_never_lowers_the_quotient(p, q, anchored):
    matrix = draw(6, 9)
    pairs = PairSet(draw(50, 9, seed=1), draw(50, 9, seed=2))
    before = first = quotients(pairs, lambda z: z @ matrix.T, p, q)
    for _ in range(10):
        rule = Power(p, anchored=anchored)
        pairs, _ = climb(pairs, rule, 1, f=lambda z: z @ matrix.T, p=p, q=q, anchored=anchored)
        after = quotients(pairs, lambda z: z @ matrix.T, p, q)
        assert (after >= before * (1 - 1e-12)).all()
        before = after
    assert after.mean() > 1.2 * first.mean()


def test_power_steps_converge_at_the_rate_of_the_power_method():
    matrix = torch.diag(torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64))
    pairs = PairSet(torch.zeros(1, 3, dtype=torch.float64), torch.ones(1, 3, dtype=torch.float64))
    for k in range(1, 8):
        pairs, _ = climb(pairs, Power(2, anchored=True), 1, f=lambda z: z @ matrix, anchored=True)
        v = matrix.diagonal() ** (2 * k)
        torch.testing.assert_close(pairs.x_prime[0] / pairs.x_prime.norm(), v / v.norm())


# ---- what ascent must survive ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES, ids=lambda r: type(r).__name__)
def test_a_level_set_pair_stays_where_it_is(rule):
    x = draw(3, 4)
    pairs = PairSet(x, -x)
    moved, _ = climb(pairs, rule, 3, f=lambda z: z.abs())
    assert torch.equal(moved.x, pairs.x)
    assert torch.equal(moved.x_prime, pairs.x_prime)


@pytest.mark.parametrize("rule", RULES, ids=lambda r: type(r).__name__)
def test_a_nan_gradient_moves_no_pair_and_enters_no_state(rule):
    pairs = draw_pairs()
    moved, state = climb(pairs, rule, 2)

    def broken(z):  # for the second pair
        return torch.where((z == rule.gradient_point(moved, state).x[1]).all(1, keepdim=True), math.nan, f(z))

    after, after_state = climb(moved, rule, 1, f=broken, state=state)
    assert after.isfinite().all()
    assert torch.equal(after.x[1], moved.x[1])
    assert (after.x[[0, 2, 3, 4]] != moved.x[[0, 2, 3, 4]]).any(1).all()
    assert all(s.isfinite().all() for s in after_state.values())


@pytest.mark.parametrize("rule", [SGD(1.0, 0.9), Nesterov(1.0), Adam(1.0)], ids=lambda r: type(r).__name__)
def test_bounds_hold_pairs_back_and_nothing_runs_away_behind_them(rule):
    pairs = PairSet(draw(4, 2).sigmoid(), draw(4, 2, seed=1).sigmoid())
    steep = torch.tensor([[3.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    moved, state = climb(pairs, rule, 300, f=lambda z: z @ steep, project=lambda z: z.clamp((0, 1)))
    assert min(moved.x.min(), moved.x_prime.min()) >= 0
    assert max(moved.x.max(), moved.x_prime.max()) <= 1
    assert max(row_norm(rule.gradient_point(moved, state).x, math.inf)) <= 2


@pytest.mark.parametrize("p", NORMS)
def test_projection_on_the_sphere_is_idempotent_and_keeps_the_centre(p):
    centre = draw(5, 4, seed=7)
    pairs = draw_pairs()
    pairs = PairSet(torch.cat([centre[:1], pairs.x[1:]]), pairs.x_prime)
    once = on_sphere(pairs, centre, 8.0, p)
    twice = on_sphere(once, centre, 8.0, p)
    torch.testing.assert_close(twice.x, once.x)
    torch.testing.assert_close(row_norm(once.x_prime - centre, p), torch.full((5,), 8.0, dtype=centre.dtype))
    assert torch.equal(once.x[0], centre[0])


def test_ascent_leaves_parameters_alone():
    model = torch.nn.Linear(4, 2).double()
    pairs = draw_pairs()
    climb(pairs, SGD(0.1, 0.9), 3, f=model)
    assert model.weight.grad is None
    assert not any(z.requires_grad for z in pairs)
