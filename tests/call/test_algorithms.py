"""The penalty against slow transcriptions of the report's algorithms, step by step through a training run."""

import math

import oracles
import pytest
import torch
from torch import nn
from zoo import bare

from torchlipreg import LipschitzPenalty
from torchlipreg.call.region import Region

STEPS = 6
WEIGHT = 0.05
EPSILON = 0.3
TAU = 0.4


def exactly(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11)


def as_list(pairs):
    return list(zip(pairs.x, pairs.x_prime, strict=True))


@pytest.fixture
def drawn(monkeypatch):
    """What the penalty draws: the starting pairs that both twins share."""
    record, original = [], Region._settled

    def settled(*arguments, **options):
        record.append(original(*arguments, **options))
        return record[-1]

    monkeypatch.setattr(Region, "_settled", settled)
    return record


class TwinRun:
    """Two equal networks in float64, trained side by side: one with the penalty, one with its slow twin."""

    def __init__(self):
        torch.manual_seed(0)
        self.fast = nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 3)).double()
        self.slow = nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 3)).double()
        self.slow.load_state_dict(self.fast.state_dict())
        self.optimizers = [torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9) for m in (self.fast, self.slow)]
        generator = torch.Generator().manual_seed(1)
        self.batches = torch.randn(STEPS, 5, 4, generator=generator, dtype=torch.float64)
        self.targets = torch.randn(STEPS, 5, 3, generator=generator, dtype=torch.float64)

    def __iter__(self):
        return zip(self.batches, self.targets, strict=True)

    def train(self, x, y, penalty, slow_penalty):
        """Compare the two penalties, then take one training step with each."""
        exactly(penalty, slow_penalty)
        for model, optimizer, term in zip(
            (self.fast, self.slow), self.optimizers, (penalty, slow_penalty), strict=True
        ):
            optimizer.zero_grad()
            (nn.functional.mse_loss(model(x), y) + term).backward()
            optimizer.step()
        for fast, slow in zip(self.fast.parameters(), self.slow.parameters(), strict=True):
            exactly(fast, slow)

    def assert_moved(self, before, after):
        assert (before.x_prime - after.x_prime).abs().max() > 1e-3


@pytest.fixture
def run():
    return TwinRun()


@pytest.mark.parametrize("radius", [None, EPSILON])
@pytest.mark.parametrize("ascent_steps", [1, 3])
@pytest.mark.parametrize("method", ["max", "sum"])
def test_algorithm_1(run, drawn, method, ascent_steps, radius):
    penalty = bare(
        method, WEIGHT, num_pairs=6, exponent=1, ascent="sgd", step_size=TAU, ascent_steps=ascent_steps, radius=radius
    )
    x_lip, velocities = None, [(torch.zeros(4), torch.zeros(4))] * 6
    for x, y in run:
        value = penalty(run.fast, x, run.fast(x))
        x_lip = as_list(drawn[0]) if x_lip is None else x_lip
        for _ in range(ascent_steps):
            x_lip, velocities = oracles.sgdm(run.slow, x_lip, velocities, TAU, 0.9)
        exactly(penalty.pairs.x, torch.stack([x_1 for x_1, _ in x_lip]))
        exactly(penalty.pairs.x_prime, torch.stack([x_2 for _, x_2 in x_lip]))
        quotients = oracles.quotients(run.slow, x_lip)
        run.train(x, y, value, WEIGHT * (quotients.max() if method == "max" else quotients.mean()))
    run.assert_moved(drawn[0], penalty.pairs)


def test_algorithm_2(run, drawn):
    penalty = bare("max", WEIGHT, num_pairs=6, exponent=1, ascent="nesterov", step_size=TAU, ascent_steps=5)
    for x, y in list(run)[:1]:  # the sequence restarts in the twin, so one call of several steps
        value = penalty(run.fast, x)
        x_lip = oracles.nesterov(run.slow, as_list(drawn[0]), TAU, 5)
        exactly(penalty.pairs.x_prime, torch.stack([x_2 for _, x_2 in x_lip]))
        run.train(x, y, value, WEIGHT * oracles.quotients(run.slow, x_lip).max())


def test_algorithm_2_goes_on_from_call_to_call(run, drawn):
    penalty = bare("max", WEIGHT, num_pairs=6, ascent="nesterov", step_size=TAU)
    for x, _ in run:  # the model stays as it is
        penalty(run.fast, x)
    x_lip = oracles.nesterov(run.slow, as_list(drawn[0]), TAU, STEPS)
    exactly(penalty.pairs.x_prime, torch.stack([x_2 for _, x_2 in x_lip]))


@pytest.mark.parametrize("ascent_steps", [1, 2])
def test_algorithm_3(run, drawn, ascent_steps):
    penalty = bare(
        "ptv",
        WEIGHT,
        exponent=1,
        anchored=False,
        ascent="sgd",
        momentum=0,
        step_size=TAU,
        radius=EPSILON,
        ascent_steps=ascent_steps,
    )
    for x, y in run:
        value = penalty(run.fast, x, run.fast(x))
        assert torch.equal(drawn[-1].x, x)
        x_lip = as_list(drawn[-1])
        for _ in range(ascent_steps):
            x_lip = oracles.projected_tv(run.slow, x_lip, x, TAU, EPSILON)
        exactly(penalty.pairs.x, torch.stack([x_1 for x_1, _ in x_lip]))
        exactly(penalty.pairs.x_prime, torch.stack([x_2 for _, x_2 in x_lip]))
        run.train(x, y, value, WEIGHT * oracles.quotients(run.slow, x_lip).mean())
    assert len(drawn) == STEPS


def test_algorithm_4(run, drawn):
    penalty = bare("tv", WEIGHT, exponent=1, anchored=False, ascent="sgd", momentum=0, step_size=TAU, radius=EPSILON)
    for x, y in run:
        value = penalty(run.fast, x, run.fast(x))
        assert torch.equal(drawn[-1].x, x)
        assert (drawn[-1].distance(2) <= penalty.radius).all()
        x_lip = oracles.random_tv(run.slow, as_list(drawn[-1]), TAU)
        exactly(penalty.pairs.x, torch.stack([x_1 for x_1, _ in x_lip]))
        exactly(penalty.pairs.x_prime, torch.stack([x_2 for _, x_2 in x_lip]))
        run.train(x, y, value, WEIGHT * oracles.quotients(run.slow, x_lip).mean())
        penalty.radius *= 0.9
    run.assert_moved(drawn[-1], penalty.pairs)


def test_adam_is_torchs(run, drawn):
    penalty = bare("sum", WEIGHT, num_pairs=6, exponent=1, ascent="adam", step_size=0.02)
    points, adam = None, None
    for x, y in run:
        value = penalty(run.fast, x)
        if points is None:
            points = [z.clone().requires_grad_() for z in drawn[0]]
            adam = torch.optim.Adam(points, lr=0.02, maximize=True)
        adam.zero_grad()
        (oracles.quotients(run.slow, zip(*points, strict=True)) ** 2).sum().backward()
        adam.step()
        exactly(penalty.pairs.x, points[0].detach())
        exactly(penalty.pairs.x_prime, points[1].detach())
        x_lip = list(zip(*(z.detach() for z in points), strict=True))
        run.train(x, y, value, WEIGHT * oracles.quotients(run.slow, x_lip).mean())


@pytest.mark.parametrize("p", [1, 2, math.inf])
@pytest.mark.parametrize("method", ["tv", "ptv"])
def test_anchored_power_steps_squared(run, drawn, method, p):
    penalty = bare(method, WEIGHT, radius=EPSILON, input_norm=p, ascent_steps=2)
    for x, y in run:
        value = penalty(run.fast, x, run.fast(x))
        expected = []
        for x_1, x_2 in as_list(drawn[-1]):
            for _ in range(2):
                x_2 = oracles.power_step(run.slow, x_1, x_2, p)
            difference = run.slow(x_1[None]) - run.slow(x_2[None])
            expected.append((difference**2).sum() / oracles.norm_of(x_1 - x_2, p) ** 2)
        exactly(penalty.pairs.x, x)
        if method == "ptv":
            exactly(penalty.pairs.distance(p), torch.full((5,), EPSILON, dtype=x.dtype))
        run.train(x, y, value, WEIGHT * torch.stack(expected).mean())


def test_interval_applies_k_times_the_penalty_every_kth_call(run, drawn):
    lazy, busy = (bare("tv", WEIGHT, interval=k) for k in (3, 1))
    values = [lazy(run.fast, x).item() for x, _ in run]
    assert values[1:3] == values[4:6] == [0.0, 0.0]
    assert values[0] == pytest.approx(3 * busy(run.fast, run.batches[0]).item())
    assert values[3] > 0


@pytest.mark.parametrize("exponent", [1, 2])
@pytest.mark.parametrize("method", ["max", "sum", "tv", "ptv"])
def test_movements_are_quotients_over_the_scale(method, exponent):
    """weight · reduce (scale · q)^exponent: the report's λ is weight · scale^exponent, and the estimate stays bare."""
    torch.manual_seed(0)
    model, x, found = nn.Linear(6, 3).double(), torch.randn(8, 6, dtype=torch.float64), []
    for weight, scale in ((0.7, 0.25), (0.7 * 0.25**exponent, 1.0)):
        penalty = bare(method, weight, scale=scale, exponent=exponent, radius=0.1)
        found.append((penalty(model, x), penalty.estimate))
    torch.testing.assert_close(*(value for value, _ in found), rtol=1e-12, atol=0)
    assert found[0][1].equal(found[1][1])


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({"method": "tv"}, 8 / 255),
        ({"method": "ptv", "radius": 0.2}, 0.2),
        ({"method": "max", "radius": 0.2}, 0.2),
        ({"method": "tv", "radius": 0}, 1.0),
        ({"method": "max"}, 0.16),
        ({"method": "sum"}, 0.25),
        ({"method": "tv", "radius": 0.2, "scale": 0.5}, 0.5),
    ],
    ids=str,
)
def test_the_scale_is_the_radius_that_the_constructor_was_given(settings, scale):
    penalty = LipschitzPenalty(**settings)
    assert penalty.settings.scale == scale
    if settings["method"] != "sum":
        penalty.radius = 0.01  # a schedule moves the radius, not the scale
        assert penalty.settings.scale == scale
