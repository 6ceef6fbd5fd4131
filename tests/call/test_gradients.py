"""The penalty's gradient: against central differences in float64, to the parameters only, and never NaN."""

import math

import pytest
import torch
from torch import nn
from zoo import bare

METHODS = ["max", "sum", "tv", "ptv"]
NORMS = [1, 2, math.inf]


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def model():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.3), nn.Linear(6, 3)).double()
    net[1].eval()  # in train mode its statistics follow the parameters: see test_batchnorm
    return net


def assert_gradient_is_a_central_difference(model, penalty, x):
    """Along a few random directions in parameter space, the pairs held."""
    penalty(model, x)
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(penalty(model, x, update=False), parameters, allow_unused=True)
    h = 1e-5
    for seed in range(3):
        directions = [draw(*p.shape, seed=seed) for p in parameters]
        values = []
        for sign in (1, -2, 1):  # there, back beyond, home
            with torch.no_grad():
                for p, d in zip(parameters, directions, strict=True):
                    p += sign * h * d
            values.append(penalty(model, x, update=False).item())
        slope = (values[0] - values[1]) / (2 * h)
        inner = sum((g * d).sum().item() for g, d in zip(gradients, directions, strict=True) if g is not None)
        assert inner == pytest.approx(slope, rel=1e-5, abs=1e-8)
        assert abs(slope) > 1e-4


@pytest.mark.parametrize("radius", [0.0, 0.2])
@pytest.mark.parametrize("exponent", [1, 2])
@pytest.mark.parametrize("method", METHODS)
def test_against_central_differences(model, method, exponent, radius):
    penalty = bare(method, 0.7, exponent=exponent, radius=radius, num_pairs=6)
    assert_gradient_is_a_central_difference(model, penalty, draw(8, 4))


@pytest.mark.parametrize("q", NORMS)
@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("radius", [0.0, 0.2])
def test_against_central_differences_in_every_norm(model, p, q, radius):
    penalty = bare("tv", 0.7, radius=radius, input_norm=p, output_norm=q)
    assert_gradient_is_a_central_difference(model, penalty, draw(8, 4))


@pytest.mark.parametrize("ascent", ["power", "sgd", "nesterov", "adam"])
@pytest.mark.parametrize("radius", [0.0, None])
def test_against_central_differences_for_pairs_of_data(model, ascent, radius):
    # the sum: power steps bring several pairs to the same maximum, where the max has a kink
    penalty = bare("sum", 0.7, ascent=ascent, radius=radius, ascent_steps=3)
    assert_gradient_is_a_central_difference(model, penalty, draw(8, 4))


@pytest.mark.parametrize("exponent", [1, 2])
def test_through_reused_outputs_it_is_the_same(exponent):
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    x = draw(8, 4)
    gradients = []
    for outputs in (model(x), None):
        penalty = bare("tv", 0.7, exponent=exponent)
        gradients.append(torch.autograd.grad(penalty(model, x, outputs), model.parameters(), allow_unused=True))
        assert penalty.reuses_outputs is (True if outputs is not None else None)
    torch.testing.assert_close(gradients[0][:3], gradients[1][:3], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("radius", [0.0, 0.2])
@pytest.mark.parametrize("method", METHODS)
def test_gradient_is_to_the_parameters_only(model, method, radius):
    x = draw(8, 4).requires_grad_()
    penalty = bare(method, radius=radius)
    value = penalty(model, x)
    assert value.shape == ()
    assert all(p.grad is None for p in model.parameters())
    value.backward()
    assert x.grad is None
    assert not any(z.requires_grad for z in penalty.pairs)
    assert not penalty.estimate.requires_grad
    assert model[0].weight.grad.abs().max() > 0


def collapse(penalty, distance):
    """Move the stored partners to this distance from their points."""
    pairs = penalty.pairs
    for x, x_prime in zip(pairs.x, pairs.x_prime, strict=True):
        x_prime.copy_(x)
        x_prime[0] += distance


def assert_finite(model, value):
    model.zero_grad()
    value.backward()
    assert value.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("exponent", [1, 2])
@pytest.mark.parametrize("distance", [0.0, 1e-30, 1e-5])
@pytest.mark.parametrize("ascent", ["sgd", "nesterov", "adam", "power"])
@pytest.mark.parametrize("p", NORMS)
def test_coincident_pairs_are_harmless_and_drawn_anew(distance, p, exponent, ascent):
    model = nn.Linear(4, 3)
    penalty = bare("max", exponent=exponent, input_norm=p, output_norm=p, ascent=ascent)
    x = draw(8, 4, dtype=torch.float32)
    penalty(model, x)
    collapse(penalty, distance)
    assert_finite(model, penalty(model, x))
    assert_finite(model, penalty(model, x))
    assert penalty.pairs.distance(p).min() > 1e-3


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("radius", [0.0, 0.2])
@pytest.mark.parametrize("exponent", [1, 2])
def test_equal_data_points(method, radius, exponent):
    model = nn.Linear(4, 3)
    assert_finite(model, bare(method, radius=radius, exponent=exponent)(model, torch.ones(8, 4)))


@pytest.mark.parametrize("method", ["max", "sum"])
def test_equal_data_points_make_no_pairs_and_no_penalty(method):
    model = nn.Linear(4, 3)
    penalty = bare(method)
    for _ in range(3):
        value = penalty(model, torch.ones(8, 4))
        assert_finite(model, value)
        assert value == 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("radius", [0.0, 0.2])
@pytest.mark.parametrize("weights", ["zero", "constant", "tiny", "steep"])
def test_extreme_networks(method, radius, weights):
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    with torch.no_grad():
        for p in model.parameters():
            p *= {"zero": 0.0, "constant": 1.0, "tiny": 1e-15, "steep": 1e3}[weights]
        if weights == "constant":
            model[0].bias.fill_(-1e6)  # every ReLU is dead
    penalty = bare(method, radius=radius)
    for _ in range(3):
        assert_finite(model, penalty(model, draw(8, 4, dtype=torch.float32)))
    if weights in ("zero", "constant"):
        assert penalty.estimate == 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("half_model", [False, True])
def test_half_precision_inputs_and_models(method, dtype, half_model):
    torch.manual_seed(0)
    model = nn.Linear(20, 5).to(dtype if half_model else torch.float32)
    penalty = bare(method, radius=None if method in ("max", "sum") else 4.0)
    for _ in range(20):
        value = penalty(model, draw(16, 20).to(dtype))
        assert_finite(model, value)
    assert value.dtype == torch.float32
    exact = torch.linalg.svdvals(model.weight.float().detach())[0]
    assert 0.4 * exact < penalty.estimate < 1.05 * exact


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_rows_that_are_not_finite(method, bad):
    model, penalty = nn.Linear(4, 3), bare(method)
    x = draw(8, 4, dtype=torch.float32)
    penalty(model, x)
    poisoned = x.clone()
    poisoned[2, 1] = bad
    assert_finite(model, penalty(model, poisoned))
    assert penalty.pairs.isfinite().all()
    with pytest.warns(UserWarning, match="NaN or infinity"):
        penalty.warn_of_data()
    assert penalty.estimate.isfinite()
    assert_finite(model, penalty(model, x))


@pytest.mark.parametrize("input_scale", [1e-6, 1e3])
@pytest.mark.parametrize("method", METHODS)
def test_radius_zero_at_any_scale_of_the_data(method, input_scale):
    torch.manual_seed(0)
    model = nn.Linear(20, 5)
    penalty = bare(method, radius=0, ascent="power", ascent_steps=20, input_norm=1)
    for _ in range(3):
        penalty(model, input_scale * draw(16, 20, dtype=torch.float32))
    exact = model.weight.norm(dim=0).max().item()
    assert penalty.estimate.item() == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize("method", ["max", "sum"])
def test_in_the_limit_pairs_live_on_at_any_scale_of_the_data(method):
    torch.manual_seed(0)
    model, x = nn.Linear(20, 5), 1e4 * draw(16, 20, dtype=torch.float32)  # a floor far above a direction's length
    penalty = bare(method, radius=0, ascent="power")
    penalty(model, x)
    born = penalty.pairs.x.clone()
    for _ in range(30):
        penalty(model, x)
    assert torch.equal(penalty.pairs.x, born)
    assert penalty.estimate.item() == pytest.approx(torch.linalg.svdvals(model.weight.detach())[0].item(), rel=0.01)
