"""The difference quotient: its laws, and what it is where a division would fail."""

import math

import oracles
import pytest
import torch

from torchlipreg import difference_quotient
from torchlipreg.geometry.quotient import distance_floor

NORMS = [1, 2, math.inf]
EXACT = [(p, q) for p in NORMS for q in NORMS if p == 1 or q == math.inf or p == q == 2]


def draw(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def f(x):
    """A smooth network in the dtype of its input."""
    first, second = draw(8, 6, seed=1).to(x.dtype), draw(4, 8, seed=2).to(x.dtype)
    return torch.tanh(x.flatten(1) @ first.T) @ second.T


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("q", NORMS)
def test_value_is_that_of_a_plain_loop(p, q):
    x, x_prime = draw(5, 2, 3), draw(5, 2, 3, seed=3)
    expected = [
        oracles.norm_of(f(a[None]) - f(b[None]), q) / oracles.norm_of(a - b, p) for a, b in zip(x, x_prime, strict=True)
    ]
    actual = difference_quotient(f, x, x_prime, input_norm=p, output_norm=q)
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=x.dtype))


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("q", NORMS)
def test_laws(p, q):
    x, x_prime, shift = draw(5, 6), draw(5, 6, seed=3), draw(5, 6, seed=4)

    def quotient(function, a=x, b=x_prime):
        return difference_quotient(function, a, b, input_norm=p, output_norm=q)

    value = quotient(f)
    torch.testing.assert_close(quotient(lambda z: -3 * f(z)), 3 * value)
    torch.testing.assert_close(quotient(lambda z: f(z) + 5), value)
    torch.testing.assert_close(quotient(f, x_prime, x), value)
    torch.testing.assert_close(quotient(lambda z: f(z - shift), x + shift, x_prime + shift), value)
    torch.testing.assert_close(quotient(lambda z: f(z / 10), 10 * x, 10 * x_prime), value / 10)


@pytest.mark.parametrize(("p", "q"), EXACT)
@pytest.mark.parametrize("shape", [(5, 20), (64, 10), (1, 30)])
def test_never_above_the_operator_norm_of_a_linear_map(shape, p, q):
    matrix = draw(*shape)
    x, x_prime = draw(200, shape[1], seed=1), draw(200, shape[1], seed=2)
    value = difference_quotient(lambda z: z @ matrix.T, x, x_prime, input_norm=p, output_norm=q)
    assert value.max() <= oracles.matrix_norm(matrix, p, q) * (1 + 1e-12)


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_coincident_pairs_have_quotient_and_gradient_zero(p, dtype):
    x = torch.ones(2, 3, dtype=dtype, requires_grad=True)
    value = difference_quotient(lambda z: 2 * z, x, x.detach().clone(), input_norm=p)
    assert torch.equal(value, torch.zeros(2, dtype=torch.promote_types(dtype, torch.float32)))
    assert torch.equal(torch.autograd.grad(value.sum(), x)[0], torch.zeros_like(x))


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_norms_in_half_precision_do_not_overflow(p, dtype):
    x = torch.full((2, 6), -3e4, dtype=dtype)
    quotients = difference_quotient(lambda z: z, x, -x, input_norm=p, output_norm=p)
    torch.testing.assert_close(quotients, torch.ones(2))


@pytest.mark.parametrize("wrap", [lambda y: {"logits": y, "loss": 0}, lambda y: (y, 0)])
def test_outputs_are_found_as_those_of_a_model(wrap):
    x, x_prime = draw(5, 6), draw(5, 6, seed=3)
    assert torch.equal(difference_quotient(lambda z: wrap(f(z)), x, x_prime), difference_quotient(f, x, x_prime))


def test_gradient_with_respect_to_the_points():
    x, x_prime = draw(3, 6).requires_grad_(), draw(3, 6, seed=3)
    torch.autograd.gradcheck(lambda z: difference_quotient(f, z, x_prime), x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_floor_scales_with_the_data_and_leaves_room_for_them(dtype):
    assert distance_floor(dtype, 20.0) == pytest.approx(20 * distance_floor(dtype, 1.0))
    assert 0 < distance_floor(dtype, 1.0) <= 0.25
    assert distance_floor(dtype, 0.0) == distance_floor(dtype, 1.0)


def test_at_the_floor_rounding_costs_less_than_a_per_cent():
    x = draw(2000, 6)
    direction = draw(2000, 6, seed=1)
    length = distance_floor(torch.float32, x.norm(dim=1).mean().item())
    x_prime = x + length * direction / direction.norm(dim=1, keepdim=True)
    single = [z.float() for z in (x, x_prime)]
    in_float32 = difference_quotient(f, *single).double()
    exact = difference_quotient(f, *(z.double() for z in single))
    large = exact > 0.1 * exact.max()
    assert ((in_float32 - exact).abs() / exact)[large].max() < 0.01


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"input_norm": 3}, ValueError, "input_norm"),
        ({"output_norm": "2"}, ValueError, "output_norm"),
        ({"x": torch.ones(2, 3, dtype=torch.int64)}, TypeError, "`x`.*floating"),
        ({"x_prime": [1.0]}, TypeError, "`x_prime`.*tensor"),
        *(({"f": bad}, ValueError, "batch axis of 2 rows") for bad in (torch.sum, lambda z: z.sum().view(1))),
        ({"f": lambda z: z.long()}, TypeError, "output.*floating"),
        ({"f": lambda z: None}, TypeError, "output.*tensor, but got NoneType"),
        ({"x_prime": torch.ones(2, 4)}, ValueError, r"`x_prime`.*\(2, 3\).*\(2, 4\)"),
    ],
)
def test_errors(arguments, error, message):
    good = {"f": lambda z: z, "x": torch.zeros(2, 3), "x_prime": torch.ones(2, 3)}
    with pytest.raises(error, match=message):
        difference_quotient(**{**good, **arguments})
