"""ℓ1, ℓ2, ℓ∞: values against plain loops, steepest directions, spheres and balls."""

import math

import oracles
import pytest
import torch

from torchlipreg.geometry.norms import (
    dual_exponent,
    norm_gradient,
    per_row,
    random_in_ball,
    rescale,
    row_norm,
    scaled_norm,
    steepest_direction,
)

NORMS = [1, 2, math.inf]
SHAPES = [(7, 5), (3, 2, 4, 4), (4,), (1, 1)]


def draw(shape, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_norm_is_that_of_a_plain_loop(shape, p):
    v = draw(shape)
    expected = torch.tensor([oracles.norm_of(row, p) for row in v], dtype=v.dtype)
    torch.testing.assert_close(row_norm(v, p), expected)


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_norm_and_gradient_are_those_of_the_slower_vector_norm(p, dtype, tolerance):
    v = torch.cat([draw((6, 30), dtype), torch.tensor([[3.0, -3.0] + 28 * [0.0], 30 * [0.0]], dtype=dtype)])
    v.requires_grad_()
    weights = torch.arange(8, dtype=dtype)
    results = []
    for norm in (row_norm(v, p), torch.linalg.vector_norm(v, p, dim=1)):
        results.append((norm, torch.autograd.grad((weights * norm).sum(), v)[0]))
    torch.testing.assert_close(*results, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_norm_gradient_is_autograds_up_to_a_factor_per_row(shape, p):
    v = draw(shape).requires_grad_()
    (expected,) = torch.autograd.grad(row_norm(v, p).sum(), v)
    u = norm_gradient(v.detach(), p)
    torch.testing.assert_close(u / per_row(row_norm(u, 2), u), expected / per_row(row_norm(expected, 2), u))


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("scale", [1e-37, 1e-20, 1e20, 1e37])
def test_norm_gradient_does_not_depend_on_the_scale(scale, p):
    v = torch.cat([draw((6, 5), torch.float32), torch.zeros(1, 5)])
    torch.testing.assert_close(norm_gradient(scale * v, p), norm_gradient(v, p))
    assert torch.equal(norm_gradient(v, p)[-1], torch.zeros(5))


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("scale", [1e-37, 1e-25, 1.0, 1e25, 1e37])
def test_scaled_norm_neither_vanishes_nor_overflows(scale, p):
    v = torch.cat([scale * draw((6, 5), torch.float32), torch.zeros(1, 5)])
    torch.testing.assert_close(scaled_norm(v, p).double(), row_norm(v.double(), p), rtol=1e-6, atol=0)


@pytest.mark.parametrize("p", NORMS)
def test_scaled_norm_of_infinity_and_of_nothing(p):
    v = torch.tensor([[math.inf, 1.0], [1.0, 0.0], [math.nan, 1.0]])
    norms = scaled_norm(v, p)
    assert norms[0] == math.inf
    assert norms[1] == 1
    assert norms[2].isnan()
    assert p == math.inf or torch.equal(scaled_norm(torch.zeros(3, 0), p), torch.zeros(3))


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("scale", [1e-30, 1e-25, 1e25, 1e37])
def test_rows_are_rescaled_from_any_length(scale, p):
    v = torch.cat([scale * draw((6, 5), torch.float32), torch.zeros(1, 5)])
    torch.testing.assert_close(row_norm(rescale(v, 0.3, p), p), torch.tensor([0.3] * 6 + [0.0]))


@pytest.mark.parametrize("p", NORMS)
def test_norm_has_a_zero_gradient_at_zero(p):
    v = torch.zeros(2, 3, requires_grad=True)
    assert torch.equal(torch.autograd.grad(row_norm(v, p).sum(), v)[0], torch.zeros(2, 3))


@pytest.mark.parametrize("p", NORMS)
def test_dual_exponent(p):
    q = dual_exponent(p)
    assert 1 / p + 1 / q == 1
    assert dual_exponent(q) == p


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_steepest_direction_reaches_the_dual_norm_and_nothing_in_the_ball_exceeds_it(shape, p):
    g = draw(shape)
    direction = steepest_direction(g, p)
    gain = (g * direction).reshape(len(g), -1).sum(1)
    torch.testing.assert_close(row_norm(direction, p), torch.ones(len(g), dtype=g.dtype))
    torch.testing.assert_close(gain, row_norm(g, dual_exponent(p)))
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        other = random_in_ball(g, p, generator)
        assert ((g * other).reshape(len(g), -1).sum(1) <= gain + 1e-12).all()


@pytest.mark.parametrize("p", NORMS)
def test_steepest_direction_of_tiny_huge_and_zero_rows(p):
    g = torch.tensor([[3e-30, -4e-30], [3e30, -4e30], [0.0, 0.0]])
    direction = steepest_direction(g, p)
    torch.testing.assert_close(row_norm(direction, p), torch.tensor([1.0, 1.0, 0.0]))
    torch.testing.assert_close(direction[0], direction[1])


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_rescale_is_a_projection_on_the_sphere(shape, p):
    v = draw(shape)
    length = torch.rand(len(v), dtype=v.dtype, generator=torch.Generator().manual_seed(0)) + 0.1
    once = rescale(v, length, p)
    torch.testing.assert_close(row_norm(once, p), length)
    torch.testing.assert_close(rescale(once, length, p), once)
    torch.testing.assert_close(rescale(7 * v, length, p), once)
    torch.testing.assert_close(once / per_row(length, once), v / per_row(row_norm(v, p), v))


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("length", [1e-3, 8.0, 1e6])
def test_rescale_of_tiny_and_zero_rows(p, length):
    v = torch.tensor([[3e-30, -4e-30], [0.0, 0.0], [3.0, -4.0]])
    expected = rescale(torch.tensor([[3.0, -4.0]]), length, p)[0]
    torch.testing.assert_close(rescale(v, length, p), torch.stack([expected, torch.zeros(2), expected]))


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("n", [1, 2, 5])
def test_random_in_ball_is_uniform(p, n):
    points = random_in_ball(torch.empty(20_000, n, dtype=torch.float64), p, torch.Generator().manual_seed(1))
    radii = row_norm(points, p)
    assert radii.max() <= 1 + 1e-12
    # of a uniform point, ‖v‖ⁿ is uniform on [0, 1]; so are the orthants' shares, and each coordinate has mean 0
    u = (radii**n).sort().values
    assert (u - torch.linspace(0, 1, len(u), dtype=u.dtype)).abs().max() < 1.63 / math.sqrt(len(u))  # Kolmogorov, 1 %
    orthant = ((points > 0) * 2 ** torch.arange(n)).sum(1)
    shares = torch.bincount(orthant, minlength=2**n) / len(points)
    torch.testing.assert_close(shares, torch.full_like(shares, 2.0**-n), atol=0.01, rtol=0)
    # within a sphere too: coordinates are exchangeable, and independent of the radius
    spread = (points / per_row(radii, points)).abs().mean(0)
    torch.testing.assert_close(spread, spread.mean().expand(n), atol=0.01, rtol=0)
    outer = radii > radii.median()
    direction = (points / per_row(radii, points)).abs()
    torch.testing.assert_close(direction[outer].mean(0), direction[~outer].mean(0), atol=0.02, rtol=0)


@pytest.mark.parametrize("p", [1, 2])
def test_random_in_ball_fills_the_plane_evenly(p):
    points = random_in_ball(torch.empty(20_000, 2, dtype=torch.float64), p, torch.Generator().manual_seed(2))
    side = 0.5 if p == 1 else math.sqrt(0.5)  # a box inside the ball: |x|, |y| ≤ side
    area = 2.0 if p == 1 else math.pi
    inside = (points.abs() <= side).all(1).double().mean().item()
    assert inside == pytest.approx((2 * side) ** 2 / area, abs=0.015)


def test_random_in_ball_keeps_shape_and_dtype_and_follows_its_generator_only():
    like = torch.empty(3, 2, 4)
    torch.manual_seed(0)
    first = random_in_ball(like, 1, torch.Generator().manual_seed(5))
    torch.manual_seed(1)
    assert first.shape == like.shape
    assert first.dtype == like.dtype
    assert torch.equal(first, random_in_ball(like, 1, torch.Generator().manual_seed(5)))
