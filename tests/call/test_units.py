"""The law of raw units: a penalty told of the loop's normalisation is one on raw data with it inside the model."""

import math
import queue

import pytest
import torch
from torch import nn
from zoo import ASCENTS, METHODS, gradients

from torchlipreg import LipschitzPenalty, lipschitz_lower_bound, operator_norm

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}


class Normalised(nn.Module):
    """A network of raw images: the loop's network with the normalisation in front."""

    def __init__(self, net, mean=MEAN, std=STD):
        super().__init__()
        self.net = net
        self.mean, self.std = (torch.tensor(v, dtype=torch.float64).view(1, -1, 1, 1) for v in (mean, std))

    def forward(self, x):
        return self.net((x - self.mean.to(x.dtype)) / self.std.to(x.dtype))


def net_and_images(dtype):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(64, 5)).to(dtype)
    return net, torch.rand(8, 3, 6, 6, dtype=dtype)


def normalised(x, mean=MEAN, std=STD):
    mean, std = (torch.tensor(v, dtype=torch.float64).view(1, -1, 1, 1).to(x.dtype) for v in (mean, std))
    return (x - mean) / std


def assert_law(dtype, calls=3, outputs=True, **settings):
    """Take some calls of both, whose values, gradients, estimates and pairs have to agree."""
    net, x = net_and_images(dtype)
    raw_net, z = Normalised(net), normalised(x)
    told = LipschitzPenalty(weight=1.0, normalization=(MEAN, STD), **settings)
    raw = LipschitzPenalty(weight=1.0, **settings)
    # Where signs decide on a step, rounding may turn one: in float32 the values agree, not each coordinate.
    tolerance = {"rtol": 1e3 * TOLERANCE[dtype], "atol": 10 * TOLERANCE[dtype]}
    for _ in range(calls):
        values, grads = [], []
        for penalty, model, points in ((told, net, z), (raw, raw_net, x)):
            net.zero_grad()
            value = penalty(model, points, model(points) if outputs else None)
            value.backward()
            values.append(value.detach())
            grads.append(gradients(net).clone())
        torch.testing.assert_close(values[0], values[1], **tolerance)
        torch.testing.assert_close(grads[0], grads[1], **tolerance)
        torch.testing.assert_close(told.estimate, raw.estimate, **tolerance)
        if dtype == torch.float64:
            for mine, theirs in zip(told.pairs, raw.pairs, strict=True):
                torch.testing.assert_close(mine, normalised(theirs), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("p", [1, 2, math.inf])
@pytest.mark.parametrize("radius", [0.1, 0.0])
@pytest.mark.parametrize("method", METHODS)
def test_methods_norms_and_the_limit(method, radius, p, dtype):
    few = {"num_pairs": 6} if method in ("max", "sum") else {}
    assert_law(dtype, method=method, radius=radius, input_norm=p, output_norm=p, **few)


@pytest.mark.parametrize("ascent", ASCENTS)
@pytest.mark.parametrize("method", METHODS)
def test_ascents(method, ascent):
    assert_law(torch.float64, method=method, ascent=ascent, ascent_steps=2, radius=0.1)


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "max", "radius": None, "num_pairs": 6},
        {"method": "tv", "bounds": (0, 1)},
        {"method": "sum", "radius": None, "noise": 0.1, "bounds": (0, 1)},
        {"method": "ptv", "anchored": False},
        {"method": "tv", "one_sided": True},
        {"method": "tv", "num_pairs": 3},
        {"method": "tv", "exponent": 1, "scale": 0.5},
        {"method": "tv", "outputs": False},
    ],
    ids=str,
)
def test_options_are_told_in_raw_units(settings):
    assert_law(torch.float64, **settings)


def test_numbers_for_all_channels():
    net, x = net_and_images(torch.float64)
    told = LipschitzPenalty(weight=1.0, normalization=(0.5, 0.25))
    raw = LipschitzPenalty(weight=1.0)
    inside = Normalised(net, (0.5,) * 3, (0.25,) * 3)
    torch.testing.assert_close(told(net, (x - 0.5) / 0.25), raw(inside, x), rtol=1e-10, atol=0)


def test_numbers_in_the_shape_in_which_images_take_them():
    as_images = tuple(torch.tensor(numbers).view(shape) for numbers, shape in ((MEAN, (3, 1, 1)), (STD, (1, 3, 1, 1))))
    mean, std = LipschitzPenalty(normalization=as_images).settings.normalization
    assert (mean, std) == (pytest.approx(MEAN), pytest.approx(STD))


def test_columns_of_a_table():
    x = torch.rand(8, 3, dtype=torch.float64)
    net = nn.Linear(3, 2).double()
    mean, std = torch.tensor(MEAN).double(), torch.tensor(STD).double()
    told = LipschitzPenalty(weight=1.0, normalization=(mean, std))
    raw = LipschitzPenalty(weight=1.0)
    torch.testing.assert_close(told(net, (x - mean) / std), raw(lambda z: net((z - mean) / std), x), rtol=1e-10, atol=0)


def test_the_outputs_of_the_loop_serve():
    net, x = net_and_images(torch.float32)
    penalty = LipschitzPenalty(normalization=(MEAN, STD))
    penalty(net, normalised(x), net(normalised(x)))
    assert penalty.reuses_outputs


def test_pairs_are_what_the_model_takes():
    net, x = net_and_images(torch.float64)
    penalty = LipschitzPenalty(normalization=(MEAN, STD))
    penalty(net, normalised(x))
    torch.testing.assert_close(penalty.pairs.x, normalised(x), rtol=1e-12, atol=1e-12)
    radius = (penalty.pairs.x_prime - penalty.pairs.x).abs().amax((0, 2, 3))
    torch.testing.assert_close(radius, 8 / 255 / torch.tensor(STD).double(), rtol=0.02, atol=0)


@pytest.mark.parametrize("radius", [None, 0.1, 0.0])
def test_lower_bound(radius):
    net, x = net_and_images(torch.float64)
    options = {"radius": radius, "input_norm": math.inf, "bounds": (0, 1)}
    told = lipschitz_lower_bound(net, normalised(x), normalization=(MEAN, STD), **options)
    assert told == pytest.approx(lipschitz_lower_bound(Normalised(net), x, **options), rel=1e-9)
    assert told != pytest.approx(lipschitz_lower_bound(net, normalised(x), radius=radius, input_norm=math.inf), rel=0.1)


@pytest.mark.parametrize(("p", "q"), [(2, 2), (1, 2), (math.inf, math.inf)])
def test_operator_norm(p, q):
    net, x = net_and_images(torch.float64)
    told = operator_norm(net, normalised(x), input_norm=p, output_norm=q, normalization=(MEAN, STD))
    torch.testing.assert_close(told, operator_norm(Normalised(net), x, input_norm=p, output_norm=q), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("normalization", "error", "match"),
    [
        ((0.5, 0.0), ValueError, "`normalization`.*std"),
        ((0.5, (0.2, -0.1, 0.3)), ValueError, "`normalization`.*std"),
        ((0.5, math.nan), ValueError, "`normalization`.*std"),
        ((math.inf, 1.0), ValueError, "`normalization`.*mean"),
        (((0.5, 0.5), (1.0, 1.0, 1.0)), ValueError, "`normalization`.*2 and 3"),
        (0.5, TypeError, r"`normalization` to be \(mean, std\)"),
        (("a", "b"), TypeError, "`normalization`"),
        ((torch.ones(2, 3), torch.ones(2, 3)), TypeError, "`normalization`"),
        ((True, 1.0), TypeError, "`normalization`"),
    ],
)
def test_bad_normalizations(normalization, error, match):
    with pytest.raises(error, match=match):
        LipschitzPenalty(normalization=normalization)
    with pytest.raises(error, match=match):
        operator_norm(nn.Linear(2, 2), torch.rand(3, 2), normalization=normalization)


def test_a_wrong_number_of_channels():
    net, x = net_and_images(torch.float32)
    with pytest.raises(ValueError, match=r"`x` to have 2 channels on axis 1.*\(8, 3, 6, 6\)"):
        LipschitzPenalty(normalization=((0.5, 0.5), (1, 1)))(net, x)


@pytest.mark.parametrize(("normalization", "bounds"), [((MEAN, STD), (-2.1, 2.6)), ((0.5, 0.5), (-1, 1))])
def test_bounds_in_normalised_units_are_named(normalization, bounds):
    with pytest.raises(ValueError, match=r"`bounds` in raw units.*look like those of normalised images"):
        LipschitzPenalty(normalization=normalization, bounds=bounds)


def test_bounds_of_other_data_than_images_are_taken():
    assert LipschitzPenalty(normalization=(0.4, 0.2), bounds=(-0.5, 1.5)).settings.bounds == (-0.5, 1.5)


def test_a_state_of_another_normalisation_is_refused():
    state = LipschitzPenalty(normalization=(MEAN, STD)).state_dict()
    with pytest.raises(ValueError, match="normalization"):
        LipschitzPenalty().load_state_dict(state)
    LipschitzPenalty(normalization=(MEAN, STD)).load_state_dict(state)


@pytest.mark.parametrize("normalization", [(0, 1), (0.0, 1.0), ([0.0], [1.0])])
def test_the_normalisation_of_raw_images_costs_nothing(normalization):
    settings = LipschitzPenalty(normalization=normalization).settings
    assert settings.units is None
    assert LipschitzPenalty(**settings.arguments()).settings.normalization == ((0.0,), (1.0,))
    net, z = net_and_images(torch.float32)
    values = [LipschitzPenalty(normalization=n)(net, z).item() for n in (normalization, None, ([0.0] * 3, [1.0] * 3))]
    assert values[0] == values[1] == values[2] > 0


COMMON = {
    "MNIST": ((0.1307,), (0.3081,)),
    "CIFAR-10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "CIFAR-10, the other": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "ImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("mean", "std"), COMMON.values(), ids=COMMON)
def test_rounding_takes_no_data_out_of_their_bounds(mean, std, dtype):
    raw = (torch.arange(256, dtype=dtype) / 255).view(4, 1, 8, 8).expand(4, len(mean), 8, 8)
    mean_, std_ = (torch.tensor(v, dtype=dtype).view(1, -1, 1, 1) for v in (mean, std))
    net = nn.Sequential(nn.Flatten(), nn.Linear(64 * len(mean), 5)).to(dtype)
    settings = {"bounds": (0.0, 1.0), "normalization": (mean, std)}
    penalty = LipschitzPenalty("tv", **settings)
    z = (raw - mean_) / std_
    assert penalty(net, z).isfinite()
    assert lipschitz_lower_bound(net, z, radius=0.1, **settings) > 0
    with pytest.raises(ValueError, match="within `bounds`"):
        LipschitzPenalty("tv", **settings)(net, z + 1e-3)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ascent", ASCENTS)
def test_the_model_is_not_evaluated_outside_of_the_bounds(method, ascent):
    """Nesterov looks ahead of the pairs; as it was, beyond the bounds."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3))
    seen = queue.SimpleQueue()  # which is not put back

    def f(x):
        seen.put(x.detach().aminmax())
        return net(x)

    options = {"ascent": ascent, "ascent_steps": 6, "step_size": None if ascent == "power" else 0.05}
    penalty = LipschitzPenalty(method, radius=0.1, bounds=(0, 1), num_pairs=16, **options)
    for _ in range(6):
        penalty(f, (torch.rand(16, 4) * 1.6 - 0.3).clamp(0, 1))
    for _ in range(seen.qsize()):
        low, high = seen.get()
        assert 0 <= low <= high <= 1


@pytest.mark.parametrize("size", [1e6, 1e8, 1e10])
@pytest.mark.parametrize("input_norm", [2, math.inf])
def test_directions_of_large_inputs_are_not_rounded_away(input_norm, size):
    """They had unit length, which at inputs of 1e8 is less than float32 resolves: the penalty was zero."""
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)), torch.randn(32, 6)
    values, bounds = [], []
    for factor in (1.0, size):
        penalty = LipschitzPenalty("tv", radius=0.0, scale=factor, input_norm=input_norm)

        def model(z, factor=factor):
            return net(z / factor)

        values.append(penalty(model, factor * x).item())
        bounds.append(factor * lipschitz_lower_bound(model, factor * x, radius=0.0, input_norm=input_norm))
    assert values[1] == pytest.approx(values[0], rel=0.02)  # other random starts round in another way
    assert bounds[1] == pytest.approx(bounds[0], rel=1e-3)


def test_points_closer_than_their_offset_resolves_are_told():
    """Pairs of data points, of one day in Unix seconds say; measured without the mean, all is exact."""
    x, net = 1.7e9 + 2.5e4 * torch.randn(64, 1, dtype=torch.float64), nn.Linear(1, 1, bias=False)
    z = ((x - 1.7e9) / 2.5e4).float()
    with pytest.warns(UserWarning, match=r"lie .* apart, .*\(0, std\) measures them without their mean"):
        LipschitzPenalty("max", normalization=(1.7e9, 2.5e4), scale=1)(net, z)
    penalty = LipschitzPenalty("max", normalization=(0, 2.5e4), scale=1)
    penalty(net, z)  # warnings are errors
    assert penalty.estimate.item() == pytest.approx(net.weight.abs().item() / 2.5e4, rel=1e-3)


def test_statistics_of_the_last_axis_are_refused():
    """As it was, they were taken for those of axis 1 where both are as long."""
    with pytest.raises(TypeError, match=r"`normalization` to be .*one number per channel"):
        LipschitzPenalty("tv", normalization=(torch.zeros(1, 1, 5), torch.ones(1, 1, 5)))
