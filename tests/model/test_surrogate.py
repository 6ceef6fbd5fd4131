"""In the limit: a derivative that is not that of the values is told or refused, and no other is."""

import math

import pytest
import torch
from torch import nn
from zoo import METHODS, conv_bn, dropout_net, mlp, penalty_of

from torchlipreg import lipschitz_lower_bound, operator_norm


class OfWindow(nn.Module):
    """As for time series: less the window's mean, which has no gradient."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(6, 6)

    def forward(self, x):
        mean = x.mean(1, keepdim=True).detach()
        return self.body(x - mean) + mean


class StraightThrough(nn.Module):
    def __init__(self, values):
        super().__init__()
        self.first, self.values, self.last = nn.Linear(6, 8), values, nn.Linear(8, 3)

    def forward(self, x):
        h = self.first(x)
        return self.last(h + (self.values(h) - h).detach())


class Ties(nn.Module):
    """On images with an empty background: many units at their kinks, many maxima tied."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 4, 3, bias=False), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3)
        )

    def forward(self, x):
        return self.net(x)


class Rounding(nn.Module):
    """Rounds inside to what differences of float64 fall below."""

    def __init__(self, dtype):
        super().__init__()
        self.weight, self.dtype = nn.Parameter(torch.randn(3, 6)), dtype

    def forward(self, x):
        return (x.to(self.dtype) @ self.weight.to(self.dtype).T).to(x.dtype)


SURROGATES = [
    OfWindow,
    lambda: StraightThrough(torch.sign),
    lambda: StraightThrough(lambda h: (8 * h).round() / 8),
    lambda: StraightThrough(lambda h: 0.5 * h),
]


def images():
    x = torch.zeros(16, 1, 8, 8)
    x[:, :, 3:5, 3:5] = torch.rand(16, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    return x


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("make", SURROGATES)
def test_a_penalty_in_the_limit_tells_once(make, method, recwarn):
    model, x, penalty = make(), torch.rand(16, 6), penalty_of(method, radius=0.1 if method in ("tv", "ptv") else None)
    penalty(model, x, model(x)).backward()
    assert not recwarn
    penalty.radius = 0.0
    for _ in range(3):
        penalty(model, x, model(x)).backward()
    assert ["not that of its values" in str(w.message) for w in recwarn] == [True]


@pytest.mark.parametrize("make", SURROGATES)
def test_measures_refuse(make):
    model, x = make(), torch.rand(16, 6)
    with pytest.raises(ValueError, match="not that of its values"):
        operator_norm(model, x, input_norm=math.inf, output_norm=math.inf)
    with pytest.raises(ValueError, match="with a `radius`"):
        lipschitz_lower_bound(model, x, radius=0)
    assert lipschitz_lower_bound(model, x, radius=0.1) >= 0  # the way out


@pytest.mark.parametrize(
    ("make", "x"),
    [
        (mlp, torch.zeros(16, 6)),
        (lambda: nn.Sequential(nn.Linear(6, 64, bias=False), nn.ReLU(), nn.Linear(64, 3)), 1e4 * torch.rand(16, 6)),
        (lambda: nn.Sequential(nn.Linear(6, 64), nn.Hardtanh(), nn.Linear(64, 3)), 1e-6 * torch.rand(16, 6)),
        (lambda: nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3)), torch.rand(1, 6)),
        (conv_bn, torch.rand(16, 3, 6, 6)),
        (dropout_net, torch.rand(16, 6)),
        (Ties, images()),
        (lambda: Rounding(torch.float32), torch.rand(16, 6)),
        (lambda: Rounding(torch.bfloat16), torch.rand(16, 6)),
    ],
)
def test_no_other_model_is_told(make, x, recwarn):
    torch.manual_seed(0)
    model, penalty = make(), penalty_of("tv", radius=0.0)
    penalty(model, x, model(x)).backward()
    operator_norm(model, x[:4], input_norm=math.inf, output_norm=math.inf)
    assert not any("not that of its values" in str(w.message) for w in recwarn)
    recwarn.clear()


class Conditioned(nn.Module):
    def __init__(self, held):
        super().__init__()
        self.body, self.held = mlp(), held

    def forward(self, x, condition):
        x = x * condition
        return self.body(x - (x.mean(1, keepdim=True).detach() if self.held else 0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
@pytest.mark.parametrize("held", [True, False])
def test_rows_beside_the_input_are_looked_at_too(held, dtype, recwarn):
    model, x, condition = Conditioned(held), torch.rand(40, 6), (1 + 3 * torch.rand(40, 6)).to(dtype)
    penalty_of("tv", radius=0.0)(model, x, model(x, condition), model_kwargs={"condition": condition}).backward()
    assert ["not that of its values" in str(w.message) for w in recwarn] == [True] * held


class OfPicture(nn.Module):
    """Less the mean of all pixels, over all their scale: of two hundred thousand."""

    def forward(self, x):
        mean, scale = x.mean((1, 2, 3), keepdim=True), x.std((1, 2, 3), keepdim=True)
        return (x - mean.detach()) / scale.detach()


@pytest.mark.parametrize("size", [4, 32, 128])
def test_a_statistic_of_many_coordinates_is_seen(size):
    with pytest.raises(ValueError, match="not that of its values"):
        lipschitz_lower_bound(OfPicture(), torch.rand(4, 3, size, size), radius=0)


class Sign(torch.autograd.Function):
    """Straight through, as most write it: without forward mode."""

    @staticmethod
    def forward(ctx, h):
        return h.sign()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Scaled(torch.autograd.Function):
    """A custom function with the right gradient, in the old style."""

    @staticmethod
    def forward(ctx, h):
        return 2 * h

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


class WithFunction(nn.Module):
    def __init__(self, apply):
        super().__init__()
        self.first, self.apply_to, self.last = nn.Linear(6, 8), apply, nn.Linear(8, 3)

    def forward(self, x):
        return self.last(self.apply_to(self.first(x)))


def hooked(h):
    if h.requires_grad:
        h.register_hook(lambda gradient: 0.1 * gradient)
    return h


@pytest.mark.parametrize("apply", [Sign.apply, hooked])
@pytest.mark.parametrize(("p", "q"), [(1, 1), (1, 2), (2, math.inf), (math.inf, math.inf)])
def test_a_backward_of_its_own_is_refused_where_a_norm_takes_it(p, q, apply):
    with pytest.raises(ValueError, match="not that of its values"):
        operator_norm(WithFunction(apply), torch.rand(16, 6), input_norm=p, output_norm=q)


def test_a_custom_function_with_the_right_backward_is_taken():
    x, model = torch.rand(16, 6), WithFunction(Scaled.apply)
    plain = nn.Sequential(model.first, nn.Linear(8, 8, bias=False), model.last)
    with torch.no_grad():
        plain[1].weight.copy_(2 * torch.eye(8))
    for norm in (1, math.inf):
        found = operator_norm(model, x, input_norm=norm, output_norm=norm)
        torch.testing.assert_close(found, operator_norm(plain, x, input_norm=norm, output_norm=norm))


class WithinBounds(nn.Module):
    def __init__(self, low, high):
        super().__init__()
        self.body, self.low, self.high = mlp(), low, high

    def forward(self, x):
        assert x.min() >= self.low, x.min()
        assert x.max() <= self.high, x.max()
        return self.body(x - 0.5 * x.mean(1, keepdim=True).detach())


@pytest.mark.parametrize("bounds", [(0, 1), None])
def test_nothing_is_evaluated_outside_of_bounds_or_of_the_data(bounds):
    x = torch.randint(2, (16, 6)).float()
    model = WithinBounds(0, 1)
    with pytest.warns(UserWarning, match="not that of its values"):
        penalty_of("tv", radius=0.0, bounds=bounds)(model, x)
    with pytest.raises(ValueError, match="not that of its values"):
        lipschitz_lower_bound(model, x, radius=0, bounds=bounds)


def test_a_forward_that_makes_another_of_its_model_is_taken():
    class Casts(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = mlp()

        def forward(self, x):
            if self.body[0].weight.dtype == torch.float32:
                self.double()
            return self.body(x.double())

    penalty, model = penalty_of("tv", radius=0.0), Casts()
    for _ in range(2):
        assert penalty(model, torch.rand(8, 6)) > 0
