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
    with pytest.raises(ValueError, match="give a `radius`"):
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


def test_rows_beside_the_input_are_looked_at_too(recwarn):
    class Conditioned(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = mlp()

        def forward(self, x, condition):
            return self.body(x * condition.detach())

    model, x, condition = Conditioned(), torch.rand(40, 6), torch.rand(40, 6)
    penalty_of("tv", radius=0.0)(model, x, model(x, condition), model_kwargs={"condition": condition}).backward()
    assert not recwarn
