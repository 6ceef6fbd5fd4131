"""The discrepancy principle, its warm-up, the decay of the radius; states and errors."""

import math
from types import SimpleNamespace

import pytest
import torch

from torchlipreg import DiscrepancyWeight, LipschitzPenalty, RadiusDecay


def weights_after(accuracies, weight=1.0, **options):
    penalty = LipschitzPenalty(weight=weight)
    schedule = DiscrepancyWeight(penalty, **{"target": 0.9, "increment": 0.25, **options})
    weights = [penalty.weight]
    for accuracy in accuracies:
        schedule.step(accuracy)
        weights.append(penalty.weight)
    return weights


def test_the_weight_rises_above_the_target_and_falls_otherwise():
    assert weights_after([0.95, 0.95, 0.9, 0.2]) == [1.0, 1.25, 1.5, 1.25, 1.0]


def test_it_is_algorithm_1s_rule():
    accuracies = torch.rand(50, generator=torch.Generator().manual_seed(0)).tolist()
    weight, expected = 1.0, [1.0]
    for accuracy in accuracies:
        weight = weight + 0.25 if accuracy > 0.5 else weight - 0.25
        weight = max(weight, 0.0)
        expected.append(weight)
    assert weights_after(accuracies, target=0.5) == expected


def test_the_weight_never_falls_below_zero_and_rises_again_from_there():
    assert weights_after([0.1] * 5 + [0.95], weight=0.6) == pytest.approx([0.6, 0.35, 0.1, 0.0, 0.0, 0.0, 0.25])


def test_max_weight_caps():
    assert weights_after([1.0] * 4, max_weight=1.6) == [1.0, 1.25, 1.5, 1.6, 1.6]


def test_warm_up_holds_zero_until_the_target_is_passed_and_then_the_penaltys_own_weight():
    weights = weights_after([0.5, 0.9, 0.91, 0.95, 0.5], weight=2.0, warmup=True)
    assert weights == [0.0, 0.0, 0.0, 2.0, 2.25, 2.0]


def test_warm_up_runs_no_forward():
    penalty = LipschitzPenalty(weight=2.0)
    schedule = DiscrepancyWeight(penalty, 0.9, 0.1, warmup=True)
    assert schedule.warming_up

    def model(z):
        raise AssertionError("called")

    assert penalty(model, torch.ones(2, 3)) == 0
    schedule.step(0.95)
    assert not schedule.warming_up
    with pytest.raises(AssertionError, match="called"):
        penalty(model, torch.ones(2, 3))


def test_accuracy_may_be_a_tensor():
    assert weights_after([torch.tensor(1.0)]) == [1.0, 1.25]


@pytest.mark.parametrize("warmup", [True, False])
@pytest.mark.parametrize("steps", [1, 3])
def test_state_round_trip(warmup, steps):
    penalties = [LipschitzPenalty(weight=1.0) for _ in range(2)]
    first, second = (DiscrepancyWeight(p, 0.9, 0.25, warmup=w) for p, w in zip(penalties, (warmup, False), strict=True))
    for _ in range(steps):
        first.step(0.95)
    second.load_state_dict(first.state_dict())
    for accuracy in (0.1, 0.95, 0.95):
        assert penalties[0].weight == penalties[1].weight
        assert first.warming_up == second.warming_up
        first.step(accuracy)
        second.step(accuracy)


def test_a_warm_up_can_be_saved_in_the_middle():
    penalty, other = LipschitzPenalty(weight=2.0), LipschitzPenalty(weight=7.0)
    first, second = (DiscrepancyWeight(p, 0.9, 0.25, warmup=True) for p in (penalty, other))
    first.step(0.5)
    second.load_state_dict(first.state_dict())
    second.step(0.95)
    assert other.weight == 2.0


def test_radius_decays_geometrically_down_to_its_minimum():
    penalty = LipschitzPenalty(radius=0.1)
    schedule = RadiusDecay(penalty, min_radius=0.05)
    radii = []
    for _ in range(10):
        schedule.step()
        radii.append(penalty.radius)
    assert radii == pytest.approx([max(0.1 * 0.9**k, 0.05) for k in range(1, 11)])


def test_a_radius_below_the_minimum_is_not_raised():
    penalty = LipschitzPenalty(radius=0.01)
    RadiusDecay(penalty, min_radius=0.05).step()
    assert penalty.radius == 0.01


def test_a_radius_that_decays_under_the_floor_becomes_the_limit_in_silence():
    model, x = torch.nn.Linear(3, 2), torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    penalty = LipschitzPenalty("tv", radius=0.1, input_norm=2, ascent_steps=20)
    schedule = RadiusDecay(penalty, gamma=0.1)
    exact = torch.linalg.svdvals(model.weight.detach())[0].item()
    for _ in range(12):
        penalty(model, x)
        assert penalty.estimate.item() == pytest.approx(exact, rel=0.01)
        schedule.step()
    assert penalty.radius == pytest.approx(1e-13)


def test_radius_state_round_trip():
    penalty, other = LipschitzPenalty(radius=0.1), LipschitzPenalty(radius=3.0)
    schedule = RadiusDecay(penalty)
    schedule.step()
    RadiusDecay(other).load_state_dict(schedule.state_dict())
    assert other.radius == penalty.radius


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"target": 95}, ValueError, "`target`"),
        ({"target": -0.1}, ValueError, "`target`"),
        ({"target": "0.9"}, TypeError, "`target`"),
        ({"increment": -1e-3}, ValueError, "`increment`"),
        ({"increment": math.nan}, ValueError, "`increment`"),
        ({"max_weight": -1}, ValueError, "`max_weight`"),
    ],
)
def test_discrepancy_errors_leave_the_penalty_alone(arguments, error, message):
    penalty = LipschitzPenalty(weight=1.0)
    with pytest.raises(error, match=message):
        DiscrepancyWeight(penalty, **{"target": 0.9, "increment": 0.1, "warmup": True, **arguments})
    assert penalty.weight == 1.0


@pytest.mark.parametrize("accuracy", [95.0, -0.1, math.nan])
def test_an_accuracy_outside_0_and_1_is_refused(accuracy):
    with pytest.raises(ValueError, match="`accuracy`"):
        weights_after([accuracy])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"gamma": 0}, "`gamma`"), ({"gamma": 1.1}, "`gamma`"), ({"min_radius": -1}, "`min_radius`")],
)
def test_radius_decay_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        RadiusDecay(LipschitzPenalty(), **arguments)


def test_radius_decay_of_a_penalty_without_radius():
    with pytest.raises(ValueError, match=r"`radius`.*None"):
        RadiusDecay(LipschitzPenalty("max"))


@pytest.mark.parametrize("state", [None, {}, {"weight": 1.0}, {"radius": 1.0, "more": 2}])
def test_a_foreign_state_is_refused(state):
    penalty = SimpleNamespace(weight=1.0, radius=1.0)
    for schedule in (DiscrepancyWeight(penalty, 0.9, 0.1), RadiusDecay(penalty)):
        with pytest.raises(ValueError, match=f"`state`.*{type(schedule).__name__}"):
            schedule.load_state_dict(state)
