"""The limit ε → 0: directional derivatives and operator norms against dense Jacobians."""

import contextlib
import math
import re

import oracles
import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from torchlipreg import LipschitzPenalty, difference_quotient, operator_norm
from torchlipreg.geometry.derivative import directional_derivative
from torchlipreg.geometry.plain import PlainFormulas

NORMS = [1, 2, math.inf]
TRACTABLE = [(p, q) for p in NORMS for q in NORMS if p == 1 or q == math.inf or p == q == 2]
HARD = [(p, q) for p in NORMS for q in NORMS if (p, q) not in TRACTABLE]


def draw(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class LastHidden(nn.Module):
    """An LSTM that returns its last output."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(3, 4, num_layers=2, dropout=0.5, batch_first=True)

    def forward(self, x):
        return self.lstm(x)[0][:, -1]


class Attention(nn.Module):
    """Fused self-attention, which has no forward-mode derivative of its own."""

    def __init__(self):
        super().__init__()
        self.qkv, self.head = nn.Linear(4, 12), nn.Linear(4, 3)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.head(nn.functional.scaled_dot_product_attention(q, k, v).mean(1))


MODELS = {  # name: (model, shape of an input)
    "relu": (lambda: nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 4)), (6,)),
    "tanh, wide": (lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 20)), (6,)),
    "in-place first layer": (lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 4)), (6,)),
    "conv": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.GELU(), nn.Flatten(), nn.Linear(27, 4)),
        (2, 5, 5),
    ),
    "dropout": (lambda: nn.Sequential(nn.Linear(6, 9), nn.Dropout(0.5), nn.Tanh(), nn.Linear(9, 4)), (6,)),
    "lstm": (LastHidden, (5, 3)),
    "attention": (Attention, (5, 4)),
    "one output": (lambda: nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 1)), (6,)),
    "image to image": (lambda: nn.Conv2d(1, 2, 3, padding=1), (1, 3, 3)),
}


def build(name):
    torch.manual_seed(0)
    make, shape = MODELS[name]
    return make().double(), draw(3, *shape, seed=7)


def expected_norms(model, x, p, q):
    model.eval()
    norms = torch.tensor([oracles.matrix_norm(oracles.dense_jacobian(model, row), p, q) for row in x])
    model.train()
    return norms.double()


@pytest.mark.parametrize(("p", "q"), TRACTABLE)
@pytest.mark.parametrize("name", MODELS)
def test_operator_norm_is_that_of_the_dense_jacobian(name, p, q):
    model, x = build(name)
    actual = operator_norm(model, x, input_norm=p, output_norm=q)
    torch.testing.assert_close(actual, expected_norms(model, x, p, q), rtol=1e-5, atol=0)
    assert model.training
    assert not actual.requires_grad


@pytest.mark.parametrize(("p", "q"), TRACTABLE)
@pytest.mark.parametrize("shape", [(5, 20), (64, 10), (1, 30), (30, 1), (1, 1)])
def test_linear_maps(shape, p, q):
    matrix = draw(*shape)
    actual = operator_norm(lambda z: z @ matrix.T, draw(2, shape[1]), input_norm=p, output_norm=q)
    expected = torch.full((2,), oracles.matrix_norm(matrix, p, q), dtype=torch.float64)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=0)
    assert (actual <= expected * (1 + 1e-12)).all()


@pytest.mark.parametrize(("p", "q"), HARD)
def test_one_output_or_one_input_makes_every_pair_of_norms_tractable(p, q):
    row, column = draw(1, 30), draw(30, 1)
    dual = {2: 2, math.inf: 1}[p]
    of_row = operator_norm(lambda z: z @ row.T, draw(2, 30), input_norm=p, output_norm=q)
    of_column = operator_norm(lambda z: z @ column.T, draw(2, 1), input_norm=p, output_norm=q)
    assert of_row.tolist() == pytest.approx([oracles.norm_of(row, dual)] * 2)
    assert of_column.tolist() == pytest.approx([oracles.norm_of(column, q)] * 2)


@pytest.mark.parametrize(("p", "q"), HARD)
def test_hard_norms_are_refused(p, q):
    with pytest.raises(ValueError, match=r"`input_norm`.*NP-hard.*lipschitz_lower_bound"):
        operator_norm(nn.Linear(3, 2), torch.zeros(2, 3), input_norm=p, output_norm=q)


def test_a_constant_function_has_norm_zero():
    for p, q in TRACTABLE:
        norms = operator_norm(lambda z: 0 * z + 1, torch.ones(2, 3), input_norm=p, output_norm=q)
        assert norms.tolist() == [0.0, 0.0]


def test_spectral_norm_grows_with_the_steps_and_never_passes_the_singular_value():
    matrix = torch.diag(torch.linspace(0.98, 1.0, 10, dtype=torch.float64))
    norms = [operator_norm(lambda z: z @ matrix, draw(1, 10), steps=k, tol=0).item() for k in (1, 10, 100, 1000)]
    assert norms == sorted(norms)
    assert norms[0] < norms[-1] - 1e-3
    assert 1 - 1e-6 < norms[-1] <= 1 + 1e-12


def test_spectral_norm_stops_at_the_tolerance():
    calls = []

    def f(z):
        calls.append(1)
        return z @ matrix

    matrix = torch.diag(torch.tensor([2.0, 1.0, 1.0]))
    operator_norm(f, torch.zeros(1, 3), steps=1000)
    assert len(calls) < 30


@pytest.mark.parametrize("name", ["relu", "tanh, wide", "conv", "lstm", "attention"])
def test_directional_derivative_is_jacobian_times_direction(name):
    model, x = build(name)
    model.eval()
    v = draw(*x.shape, seed=8)
    with sdpa_kernel(SDPBackend.MATH):  # as fixed_function chooses it
        actual = directional_derivative(model, x, v)
    expected = [oracles.dense_jacobian(model, row) @ d.flatten() for row, d in zip(x, v, strict=True)]
    torch.testing.assert_close(actual.flatten(1), torch.stack(expected))


def test_directional_derivative_is_differentiable_in_the_parameters():
    model, x = build("tanh, wide")
    v = draw(*x.shape, seed=8)
    gradient = torch.autograd.grad(directional_derivative(model, x, v).pow(2).sum(), model[0].weight)[0]
    h = 1e-6
    with torch.no_grad():
        values = []
        for sign in (1, -1):
            model[0].weight[2, 3] += sign * h
            values.append(directional_derivative(model, x, v).pow(2).sum())
            model[0].weight[2, 3] -= sign * h
    assert gradient[2, 3].item() == pytest.approx(((values[0] - values[1]) / (2 * h)).item(), rel=1e-6)


@pytest.mark.parametrize(("p", "q"), TRACTABLE)
def test_property_5_no_short_pair_is_steeper_than_the_operator_norm(p, q):
    model, x = build("tanh, wide")
    norms = operator_norm(model, x, input_norm=p, output_norm=q)
    for seed in range(50):
        x_prime = x + 1e-6 * draw(*x.shape, seed=seed)
        assert (difference_quotient(model, x, x_prime, input_norm=p, output_norm=q) <= norms * (1 + 1e-4)).all()


class NoForwardMode(torch.autograd.Function):
    """A layer that knows its backward only."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return 2 * x

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


def test_a_layer_without_forward_mode_is_named_with_the_way_out():
    with pytest.raises(RuntimeError, match=r"torch\.func\.jvp.*larger `radius`"):
        operator_norm(NoForwardMode.apply, torch.randn(2, 3))
    rows_only = operator_norm(NoForwardMode.apply, torch.randn(2, 3), output_norm=math.inf)
    assert rows_only.tolist() == [2.0, 2.0]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": torch.zeros(2, 3, dtype=torch.long)}, TypeError, "`x`"),
        ({"input_norm": 0}, ValueError, "`input_norm`"),
        ({"output_norm": 5}, ValueError, "`output_norm`"),
        ({"steps": 0}, ValueError, "`steps`"),
        ({"steps": 1.5}, TypeError, "`steps`"),
        ({"tol": -1.0}, ValueError, "`tol`"),
        ({"f": lambda z: z.sum()}, ValueError, re.escape("batch axis of 2 rows")),
        ({"f": lambda z: z.long()}, TypeError, "floating"),
    ],
)
def test_errors(arguments, error, message):
    with pytest.raises(error, match=message):
        operator_norm(**{"f": lambda z: z, "x": torch.ones(2, 3), **arguments})


class Functional(nn.Module):
    """A norm between two layers, called as a function."""

    def __init__(self, norm):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 6), norm, nn.Linear(6, 3)

    def forward(self, x):
        return self.last(self.norm(self.first(x)).tanh())


def rows(x):
    return x.view(len(x), 2, 3)


def matrices(x):
    """Two-by-two matrices, positive definite, from rows of six numbers."""
    h = rows(x)
    return h @ h.mT + torch.eye(2, dtype=x.dtype)


def three_rows(x):
    """Of rank two, so that the determinant is zero, but its gradient is not."""
    h = rows(x)
    return h.mT @ h


def four_rows(x):
    k = matrices(x)
    return torch.cat([torch.cat([k, 0.5 * k.mT], 2), torch.cat([k @ k, k], 2)], 1)


def with_matrices(f):
    return lambda: lambda x: x + f(matrices(x), rows(x))


def by_row(f):
    """Each row by itself, three times over."""
    return lambda k, h: torch.stack([f(*of_row).flatten().repeat(3) for of_row in zip(k, h, strict=True)])


NORM_LAYERS = {
    "solve": with_matrices(lambda k, h: torch.linalg.solve(k, h).flatten(1)),
    "solve from the right": with_matrices(lambda k, h: torch.linalg.solve(k, h.mT, left=False).flatten(1)),
    "solve for vectors": with_matrices(lambda k, h: torch.linalg.solve(k, h[..., 0]).repeat(1, 3)),
    "solve_ex": with_matrices(lambda k, h: torch.linalg.solve_ex(k, h)[0].flatten(1)),
    "tensorsolve": with_matrices(by_row(lambda k, h: torch.linalg.tensorsolve(k.view(2, 1, 2, 1), h[:, :1]))),
    "tensorsolve by other axes": with_matrices(
        by_row(lambda k, h: torch.linalg.tensorsolve(k.view(2, 1, 2), h[:, :1].mT, dims=(0,)))
    ),
    "triangular solve": with_matrices(lambda k, h: torch.triangular_solve(h, k)[0].flatten(1)),
    "triangular solve, transposed": with_matrices(
        lambda k, h: h.triangular_solve(k, upper=False, transpose=True)[0].flatten(1)
    ),
    "Cholesky inverse": with_matrices(lambda k, h: torch.cholesky_inverse(k).flatten(1).repeat(1, 2)[:, :6]),
    "upper Cholesky inverse": with_matrices(
        lambda k, h: torch.cholesky_inverse(k, upper=True).flatten(1).repeat(1, 2)[:, :6]
    ),
    "Householder product": with_matrices(
        lambda k, h: torch.linalg.householder_product(h.mT, h[:, :, 0].tanh()).flatten(1)
    ),
    "det": with_matrices(lambda k, h: torch.linalg.det(k)[:, None]),
    "singular det": with_matrices(lambda k, h: (h[:, :, :1] @ h[:, :, 1:2].mT).det()[:, None]),
    "det of three rows": lambda: lambda x: x + torch.linalg.det(three_rows(x))[:, None],
    "det of four rows": lambda: lambda x: x + torch.linalg.det(four_rows(x))[:, None],
    "det of one row": with_matrices(lambda k, h: torch.linalg.det(k[:, :1, :1])[:, None]),
    "negative det": with_matrices(lambda k, h: k.flip(-1).det()[:, None]),
    "logdet": with_matrices(lambda k, h: torch.logdet(k)[:, None]),
    "slogdet": with_matrices(lambda k, h: torch.slogdet(k)[1][:, None] + torch.linalg.slogdet(-k).logabsdet[:, None]),
    "layer norm": lambda: nn.LayerNorm(6),
    "layer norm without parameters": lambda: nn.LayerNorm(6, elementwise_affine=False),
    "layer norm over two axes": lambda: nn.Sequential(nn.Unflatten(1, (2, 3)), nn.LayerNorm((2, 3)), nn.Flatten()),
    "torch.layer_norm": lambda: lambda x: torch.layer_norm(x, [6]),
    "native layer norm": lambda: lambda x: torch.native_layer_norm(x, [6], None, None, 1e-5)[0],
    "encoder": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 3)), nn.TransformerEncoderLayer(3, 1, 4, dropout=0.0, batch_first=True), nn.Flatten()
    ),
    "instance norm": lambda: nn.Sequential(nn.Unflatten(1, (2, 3)), nn.InstanceNorm1d(2, affine=True), nn.Flatten()),
    "instance norm of running statistics": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 3)), nn.InstanceNorm1d(2, track_running_stats=True), nn.Flatten()
    ),
    "torch.instance_norm": lambda: (
        lambda x: torch.instance_norm(rows(x), None, None, None, None, True, 0.1, 1e-5, False).flatten(1)
    ),
    "batch norm": lambda: nn.BatchNorm1d(6),
    "batch norm of the batch": lambda: nn.BatchNorm1d(6, track_running_stats=False),
    "torch.batch_norm": lambda: lambda x: torch.batch_norm(x, None, None, None, None, True, 0.1, 1e-5, False),
    "functional batch norm": lambda: (
        lambda x: nn.functional.batch_norm(x, x.new_zeros(6), x.new_ones(6), training=True)
    ),
    "GLU": lambda: nn.Sequential(nn.Linear(6, 12), nn.GLU()),
    "hard sigmoid": lambda: nn.Hardsigmoid(),
    "hard sigmoid in place": lambda: nn.Hardsigmoid(inplace=True),
    "normalize": lambda: nn.functional.normalize,
    "normalize of zeros": lambda: (
        lambda x: nn.functional.normalize(rows(x) * x.new_tensor([[1.0], [0.0]]), dim=-1).flatten(1)
    ),
    "group norm": lambda: nn.GroupNorm(2, 6),
    "RMS norm": lambda: nn.RMSNorm(6),
}


@pytest.mark.filterwarnings("ignore:torch.triangular_solve is deprecated:UserWarning")
@pytest.mark.parametrize("name", NORM_LAYERS)
def test_the_gradient_of_a_derivative_through_a_norm(name):
    # by central differences over all parameters: torch's own is wrong for some norms
    with sdpa_kernel(SDPBackend.MATH):
        _check_gradient_of_derivative(Functional(NORM_LAYERS[name]()).double().eval())


def _check_gradient_of_derivative(net):
    x, v, h = draw(5, 6), draw(5, 6, seed=1), 1e-6
    parameters = list(net.parameters())
    quotient = (net(x + h * v) - net(x - h * v)) / (2 * h)
    torch.testing.assert_close(directional_derivative(net, x, v), quotient, rtol=1e-5, atol=1e-7)
    gradient = torch.autograd.grad(directional_derivative(net, x, v).square().sum(), parameters, allow_unused=True)
    for seed in range(3):
        moves = [draw(*p.shape, seed=seed + 7) for p in parameters]
        values = []
        for step in (h, -2 * h):
            with torch.no_grad():
                for p, move in zip(parameters, moves, strict=True):
                    p += step * move
            values.append(directional_derivative(net, x, v).square().sum().item())
        with torch.no_grad():
            for p, move in zip(parameters, moves, strict=True):
                p += h * move
        inner = sum((g * move).sum().item() for g, move in zip(gradient, moves, strict=True) if g is not None)
        assert inner == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-5, abs=1e-7)


@pytest.mark.filterwarnings("ignore:torch.triangular_solve is deprecated:UserWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "name",
    [
        "layer norm",
        "instance norm",
        "batch norm of the batch",
        "GLU",
        "hard sigmoid",
        "encoder",
        "normalize",
        "normalize of zeros",
        "solve",
        "solve from the right",
        "solve for vectors",
        "solve_ex",
        "tensorsolve",
        "tensorsolve by other axes",
        "triangular solve",
        "triangular solve, transposed",
        "Cholesky inverse",
        "upper Cholesky inverse",
        "Householder product",
        "det",
        "singular det",
        "det of three rows",
        "det of four rows",
        "det of one row",
        "negative det",
        "logdet",
        "slogdet",
    ],
)
def test_plain_formulas_have_the_values_of_torch(name, dtype):
    torch.manual_seed(0)
    net, x = Functional(NORM_LAYERS[name]()).to(dtype).eval(), draw(5, 6).to(dtype)
    with PlainFormulas():
        plain = net(x)
    torch.testing.assert_close(plain, net(x))


def test_a_solution_that_there_is_not_is_told_of_as_by_torch():
    singular = torch.ones(1, 2, 2, dtype=torch.float64)
    with PlainFormulas():
        _, failed = torch.linalg.solve_ex(singular, singular)
        with pytest.raises(torch.linalg.LinAlgError):
            torch.linalg.solve(singular, singular)
    assert failed.item() > 0


def test_householder_products_of_tall_matrices_stay_small():
    """The square of a thousand rows is never made."""
    tall, tau = draw(1, 4096, 2), draw(1, 2).tanh()
    with PlainFormulas(), FlopCounterMode(display=False) as counter:
        plain = torch.linalg.householder_product(tall, tau)
    torch.testing.assert_close(plain, torch.linalg.householder_product(tall, tau))
    assert counter.get_total_flops() < 100 * tall.numel()


@pytest.mark.parametrize("autocast", [True, False])
def test_plain_norms_return_the_dtype_of_torch(autocast):
    x = draw(5, 6).bfloat16()
    with torch.autocast("cpu", enabled=autocast):
        own = nn.functional.layer_norm(x, [6])
        with PlainFormulas():
            plain = nn.functional.layer_norm(x, [6])
    assert plain.dtype == own.dtype
    torch.testing.assert_close(plain, own)


def test_running_statistics_are_updated_by_a_plain_norm_too():
    x, means = draw(5, 6), []
    for context in (PlainFormulas(), contextlib.nullcontext()):
        mean, var = x.new_zeros(6), x.new_ones(6)
        with context:
            nn.functional.batch_norm(x, mean, var, training=True)
        means.append((mean, var))
    torch.testing.assert_close(*means)


def test_inside_of_another_forward_derivative_the_way_out_is_told():
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
    with torch.autograd.forward_ad.dual_level(), pytest.raises(RuntimeError, match="what the call is inside of"):
        LipschitzPenalty("tv", radius=0)(net, torch.randn(2, 3))
