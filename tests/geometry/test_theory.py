"""What the report's theory demands of an implementation."""

import math

import oracles
import pytest
import torch
from torch import nn
from zoo import bare

from torchlipreg import operator_norm

METHODS = ["max", "sum", "tv", "ptv"]
NORMS = [1, 2, math.inf]
SHAPES = [(5, 20), (64, 10), (1, 30)]
DRAWS = 6


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def linear_map(shape, seed):
    torch.manual_seed(seed)
    return nn.Linear(shape[1], shape[0]).double()


def norm_pairs(shape):
    return [(p, q) for p in NORMS for q in NORMS if shape[0] == 1 or p == 1 or q == math.inf or p == q == 2]


# ---- linear maps: the operator norm is never passed, and is reached -------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_on_a_linear_map_the_estimate_never_exceeds_the_operator_norm(method, shape):
    for seed in range(DRAWS):
        model, x = linear_map(shape, seed), draw(16, shape[1], seed=seed)
        for p, q in norm_pairs(shape):
            bound = oracles.matrix_norm(model.weight.detach(), p, q)
            ascent, radius = [("power", 0.1), ("sgd", 0.1), ("power", 0.0)][seed % 3]
            penalty = bare(method, input_norm=p, output_norm=q, ascent=ascent, radius=radius)
            for _ in range(2):
                penalty(model, x)
            assert 0.05 * bound < penalty.estimate <= bound * (1 + 1e-6)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("radius", [0.1, 0.0])
def test_power_steps_reach_the_spectral_norm(method, shape, radius):
    steps = 1 if method in ("max", "sum") else 10  # X_lip goes on from call to call, local pairs start anew
    for seed in range(DRAWS):
        model, x = linear_map(shape, seed), draw(16, shape[1], seed=seed)
        bound = oracles.matrix_norm(model.weight.detach(), 2, 2)
        penalty = bare(method, ascent="power", ascent_steps=steps, radius=radius)
        for _ in range(100):
            penalty(model, x)
            if penalty.estimate >= 0.99 * bound:
                break
        assert penalty.estimate >= 0.99 * bound


@pytest.mark.parametrize("ascent", ["power", "sgd", "nesterov", "adam"])
def test_every_ascent_climbs_on_pairs_of_data(ascent):
    model, x = linear_map((5, 20), 0), draw(16, 20)
    penalty = bare("sum", 1.0, exponent=1, ascent=ascent)
    values = [penalty(model, x).item() for _ in range(200)]
    assert values[-1] > 1.1 * values[0]
    assert penalty.estimate <= oracles.matrix_norm(model.weight.detach(), 2, 2) * (1 + 1e-6)


# ---- scaling laws of the whole penalty ------------------------------------------------------------------------------


@pytest.mark.parametrize("q", NORMS)
@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("scale", [1e-16, 1e12])
def test_quotients_scale_with_the_outputs_in_single_precision(scale, p, q):
    model, x = nn.Linear(20, 5), draw(16, 20, dtype=torch.float32)
    seen = []
    for factor in (1.0, scale):
        penalty = bare("tv", exponent=1, input_norm=p, output_norm=q)
        penalty(lambda z, factor=factor: factor * model(z), x)
        seen.append(penalty.estimate / factor)
    torch.testing.assert_close(seen[1], seen[0], rtol=1e-3, atol=0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("exponent", [1, 2])
@pytest.mark.parametrize("radius", [0.1, 0.0])
def test_scaling_laws(method, exponent, radius):
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double(), draw(16, 6)

    def value_of(f, weight=0.5):
        # power steps do not feel the scale of f
        penalty = bare(method, weight, exponent=exponent, radius=radius, ascent="power")
        for _ in range(3):
            value = penalty(f, x)
        return value.item()

    value = value_of(network)
    assert value > 0
    assert value_of(lambda z: -3 * network(z)) == pytest.approx(3**exponent * value)
    assert value_of(lambda z: network(z) + 100) == pytest.approx(value)
    assert value_of(network, weight=1.0) == pytest.approx(2 * value)


# ---- Properties 1 and 2: level sets ---------------------------------------------------------------------------------


def put_on_level_set(penalty):
    """Mirror every stored pair at the origin, and take its velocity away."""
    penalty.pairs.x_prime.copy_(-penalty.pairs.x)
    for values in penalty._state.last.memory.values():
        for z in values:
            z.zero_()


@pytest.mark.parametrize("ascent", ["power", "sgd"])
def test_property_1_a_pair_on_a_level_set_does_not_move_and_is_drawn_anew(ascent):
    x, scale = draw(16, 4), nn.Parameter(torch.ones((), dtype=torch.float64))

    def f(z):
        return scale * z.abs()

    penalty = bare("max", ascent=ascent)
    penalty(f, x)
    put_on_level_set(penalty)
    before = penalty.pairs.x.clone()
    penalty(f, x)
    assert torch.equal(penalty.pairs.x, before)
    assert penalty.estimate == 0
    penalty(f, x)
    assert penalty.estimate > 0.1
    assert (penalty.pairs.x != before).any(1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", ["max", "sum"])
def test_property_1_a_level_set_up_to_rounding_is_left_as_well(method, dtype):
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype), draw(16, 4, dtype=dtype)

    def even(z):
        return (1 + network(z)) + network(-z)  # (1 + a) + b is not (1 + b) + a

    penalty = bare(method, step_size=1e-6)
    penalty(even, x)
    put_on_level_set(penalty)
    penalty.pairs.x_prime[0] = x[0] + 1  # the one pair that counts
    penalty.pairs.x[0] = x[0]
    penalty(even, x)
    assert penalty._state.stuck.tolist() == [False] + [True] * 63
    penalty(even, x)
    assert (penalty.pairs.x + penalty.pairs.x_prime).abs().amax(1)[1:].min() > 1e-3


def test_property_1_by_gradient_alone_a_pair_stays_for_ever():
    x = draw(5, 4)
    pairs, velocities = list(zip(x, -x, strict=True)), [(torch.zeros(4), torch.zeros(4))] * 5
    for _ in range(10):
        pairs, velocities = oracles.sgdm(lambda z: z.abs() + 1, pairs, velocities, 0.5, 0.9)
    assert torch.equal(torch.stack([a for a, _ in pairs]), x)


@pytest.mark.parametrize("method", ["max", "sum"])
def test_property_2_noise_leaves_no_pair_on_a_level_set(method):
    x = torch.cat([draw(1, 4), -draw(1, 4)]).repeat(8, 1)  # two points, f(x) = f(−x)
    weight = nn.Parameter(torch.ones((), dtype=torch.float64))

    def smallest_difference(noise):
        penalty = bare(method, noise=noise, step_size=1e-9)
        penalty(lambda z: weight * z.abs(), x)
        difference = penalty.pairs.x.abs() - penalty.pairs.x_prime.abs()
        return difference.norm(dim=1).min()

    assert smallest_difference(0.0) == 0
    assert smallest_difference(0.2) > 0.01


# ---- Property 5: the limit ε → 0 ------------------------------------------------------------------------------------


@pytest.fixture
def smooth():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 32), nn.Softplus(0.5), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 5))


def local_estimate(model, x, radius, p=2, q=2):
    """The largest local quotient, found from 32 starts around each point."""
    penalty = bare("ptv", radius=radius, input_norm=p, output_norm=q, ascent_steps=15)
    penalty(model, x.repeat(32, 1))
    return penalty.estimate.item()


@pytest.mark.parametrize(("p", "q"), [(2, 2), (1, 1), (1, 2), (2, math.inf), (math.inf, math.inf)])
@pytest.mark.filterwarnings("ignore:`radius`")
def test_property_5_the_local_quotient_tends_to_the_operator_norm(smooth, p, q):
    x = draw(8, 10, dtype=torch.float32)
    norm = operator_norm(smooth, x, input_norm=p, output_norm=q).max().item()
    for exponent in range(1, 13):
        assert local_estimate(smooth, x, 10.0**-exponent, p, q) == pytest.approx(norm, rel=0.01), exponent


@pytest.mark.filterwarnings("ignore:`radius`")
def test_property_5_under_bfloat16_autocast(smooth):
    x = draw(8, 10, dtype=torch.float32)
    norm = operator_norm(smooth, x).max().item()
    with torch.autocast("cpu", torch.bfloat16):
        assert smooth(x).dtype == torch.bfloat16
        for exponent in range(1, 13):
            assert local_estimate(smooth, x, 10.0**-exponent) == pytest.approx(norm, rel=0.05), exponent


def test_property_5_the_limit_is_that_of_the_finite_quotients():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 32), nn.Tanh(), nn.Linear(32, 5)).double()
    x = draw(8, 10)
    limit = local_estimate(model, x, 0.0)
    errors = [abs(local_estimate(model, x, radius) - limit) for radius in (1e-1, 1e-2, 1e-3)]
    assert errors[2] < errors[1] < errors[0]
    assert errors[2] < 1e-2 * limit


def test_a_radius_under_the_floor_is_the_limit_and_says_so_once(smooth):
    x = draw(8, 10, dtype=torch.float32)
    penalty = bare("tv", radius=1e-9)
    with pytest.warns(UserWarning, match=r"`radius`=1e-09 .* limit"):
        value = penalty(smooth, x)
    assert value.item() == pytest.approx(bare("tv", radius=0)(smooth, x).item())
    penalty(smooth, x)  # warnings are errors here


# ---- Properties 8 and 26: max and mean differ -----------------------------------------------------------------------


def test_properties_8_and_26_neither_the_max_nor_the_mean_stands_for_the_other():
    # flat with one steep step, against evenly sloped: the max prefers the second, the mean the first
    steep = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))

    def step(z):
        return 4 * steep * z.clamp(0, 0.1)

    def slope(z):
        return steep * z

    x = torch.linspace(0, 1, 201, dtype=torch.float64)[1:-1].unsqueeze(1)

    def value(method, f):
        penalty = bare(method, 1.0, exponent=1, radius=0.01, num_pairs=500, ascent="power")
        return penalty(f, x).item()

    assert value("max", step) > 2 * value("max", slope)
    assert value("sum", step) < 0.6 * value("sum", slope)
    assert value("tv", step) < 0.6 * value("tv", slope)


def test_the_max_pushes_its_steepest_pair_only_and_the_mean_all_of_them():
    slopes = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64).requires_grad_()

    def f(z):  # coordinate-wise slopes; each point has one coordinate
        return z * slopes

    x = torch.eye(3, dtype=torch.float64)
    gradients = []
    for method in ("max", "sum"):
        penalty = bare(method, 1.0, num_pairs=30, radius=1.0, input_norm=1, ascent="sgd")
        gradients.append(torch.autograd.grad(penalty(f, x), slopes)[0])
    assert (gradients[0] > 0).sum() <= (gradients[1] > 0).sum()
    assert (gradients[1] > 0).all()
    assert not torch.allclose(gradients[0] / gradients[0].sum(), gradients[1] / gradients[1].sum(), rtol=0.1)


# ---- Properties 10 and 11: a large weight leaves the best constant --------------------------------------------------


@pytest.mark.parametrize("method", ["max", "tv"])
def test_properties_10_and_11_a_large_weight_flattens_to_the_mean_of_the_targets(method):
    x = torch.linspace(-1, 1, 24).unsqueeze(1)
    y = 2 + 3 * x + (4 * x).sin()

    def spread_and_mean(weight):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
        penalty = bare(method, weight, bounds=(-1.0, 1.0), num_pairs=24)
        for _ in range(250):
            outputs = model(x)
            loss = nn.functional.mse_loss(outputs, y) + penalty(model, x, outputs)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        fitted = model(x).detach()
        return fitted.std().item(), fitted.mean().item()

    spread, mean = spread_and_mean(1000.0)
    assert spread < 0.02 * y.std().item()
    assert mean == pytest.approx(y.mean().item(), abs=0.05)
    assert spread_and_mean(0.0)[0] > 0.8 * y.std().item()
