"""Dense outputs: the quotient of each position, averaged, so that the picture's size does not matter."""

import math
from functools import partial

import pytest
import torch
from torch import nn
from zoo import METHODS, bare, gradients

from torchlipreg.outputs import per_position


def segmenter():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, padding_mode="circular"), nn.Tanh(), nn.Conv2d(6, 4, 1)).double()


class Tagger(nn.Module):
    """Outputs for each token, shape (N, L, C), of embeddings."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.last(self.first(x).tanh())


def images(size=6, n=4):
    return torch.rand(n, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("q", [1, 2, math.inf])
@pytest.mark.parametrize("exponent", [1, 2])
def test_the_value_is_the_mean_over_positions(exponent, q):
    net, x = segmenter(), images()
    penalty = bare("tv", 1.0, output=per_position, output_norm=q, exponent=exponent)
    value = penalty(net, x, net(x))
    pairs = penalty.pairs
    difference = (net(pairs.x_prime) - net(pairs.x)).flatten(2)  # (N, C, positions)
    distance = (pairs.x_prime - pairs.x).flatten(1).norm(dim=1)
    quotients = torch.linalg.vector_norm(difference, q, dim=1) / distance[:, None]
    torch.testing.assert_close(value, quotients.pow(exponent).mean())
    torch.testing.assert_close(penalty.estimate, quotients.amax())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("radius", [0.1, 0.0])
def test_every_method(method, radius):
    net, x = segmenter(), images()
    few = {"num_pairs": 5} if method in METHODS[:2] else {}
    penalty = bare(method, 1.0, output=per_position, radius=radius, **few)
    for _ in range(2):
        value = penalty(net, x)
    value.backward()
    assert gradients(net).isfinite().all()
    assert penalty.estimate > 0
    torch.testing.assert_close(penalty(net, x, update=False), value)


@pytest.mark.parametrize("per", [True, False])
def test_the_weight_does_not_depend_on_the_pictures_size(per):
    """A picture that is tiled twice each way has the same local behaviour, and the same ℓ∞ ball."""
    net, small = segmenter(), images()
    large = small.repeat(1, 1, 2, 2)
    options = {"input_norm": math.inf, "ascent_steps": 10, "output": per_position if per else None}
    values = [bare("tv", 1.0, **options)(net, x).item() for x in (small, large)]
    assert values[1] / values[0] == pytest.approx(1 if per else 4, rel=0.15)


def test_tokens():
    net, x = Tagger().double(), torch.randn(4, 7, 4, dtype=torch.float64)
    output = partial(per_position, dim=-1)
    penalty = bare("tv", 1.0, output=output, ascent="sgd")
    value = penalty(net, x, net(x))
    assert penalty.reuses_outputs
    pairs = penalty.pairs
    quotients = (net(pairs.x_prime) - net(pairs.x)).norm(dim=-1) / (pairs.x_prime - pairs.x).flatten(1).norm(dim=1)[
        :, None
    ]
    torch.testing.assert_close(value, quotients.square().mean())


@pytest.mark.parametrize("q", [1, 2, math.inf])
def test_power_steps_climb_the_mean(q):
    net, x = segmenter(), images()
    values = [bare("tv", 1.0, output=per_position, output_norm=q, ascent_steps=k)(net, x).item() for k in (1, 10)]
    assert values[1] > values[0]


def test_an_output_without_positions_is_refused():
    with pytest.raises(ValueError, match=r"dense output, shape \(N, C, \*\), but got \(4, 2\)"):
        bare("tv", output=per_position)(nn.Linear(3, 2), torch.rand(4, 3))


def test_rows_that_are_not_finite_do_not_count():
    net, x = segmenter(), images()
    penalty = bare("tv", 1.0, output=per_position)
    penalty(net, x)
    spoiled = x.clone()
    spoiled[1, 0, 2, 2] = math.nan
    value = penalty(net, spoiled)
    value.backward()
    assert value.isfinite()
    assert gradients(net).isfinite().all()
    with pytest.warns(UserWarning, match="NaN"):
        penalty.warn_of_data()
