"""The discrepancy principle, its warm-up, the decay of the radius; states and errors."""

import itertools
import math
import random
from types import SimpleNamespace

import pytest
import torch

from torchlipreg import DiscrepancyWeight, ExponentialWeight, LipschitzPenalty, RadiusDecay, WeightWarmup


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


@pytest.mark.parametrize("accuracy", ["0.9", "a", None, [0.9], torch.tensor([0.9, 0.9]), True, torch.tensor(True)])
@pytest.mark.parametrize("warmup", [True, False])
def test_an_accuracy_that_is_no_number_is_refused(accuracy, warmup):
    penalty = LipschitzPenalty(weight=1.0)
    schedule = DiscrepancyWeight(penalty, 0.9, 0.25, warmup=warmup)
    with pytest.raises(TypeError, match=r"`accuracy` to be a number, but got"):
        schedule.step(accuracy)
    assert (penalty.weight, schedule.warming_up) == (0.0 if warmup else 1.0, warmup)


@pytest.mark.parametrize("bad", ["no", None, 1])
def test_a_warm_up_is_true_or_false(bad):
    penalty = LipschitzPenalty(weight=1.0)
    with pytest.raises(TypeError, match="`warmup`"):
        DiscrepancyWeight(penalty, 0.9, 0.25, warmup=bad)
    assert penalty.weight == 1.0


@pytest.mark.parametrize("penalty", [None, 0.5, LipschitzPenalty, torch.nn.Linear(3, 2)])
@pytest.mark.parametrize(
    ("build", "attribute"),
    [
        (lambda p: DiscrepancyWeight(p, 0.9, 0.1), "weight"),
        (lambda p: ExponentialWeight(p, 0.9), "weight"),
        (lambda p: WeightWarmup(p, 4), "weight"),
        (RadiusDecay, "radius"),
    ],
)
def test_what_is_no_penalty_is_refused(build, attribute, penalty):
    with pytest.raises(TypeError, match=f"`penalty` to be a penalty, with a number as its `{attribute}`, but got"):
        build(penalty)


# ExponentialWeight and WeightWarmup


def test_exponential_weight_multiplies():
    penalty = LipschitzPenalty(weight=0.5)
    schedule = ExponentialWeight(penalty, 0.9)
    for _ in range(3):
        schedule.step()
    assert penalty.weight == pytest.approx(0.5 * 0.9**3)


@pytest.mark.parametrize(("gamma", "limit"), [(0.5, {"min_weight": 0.2}), (3.0, {"max_weight": 2.0})])
def test_exponential_weight_stops_at_its_limit(gamma, limit):
    penalty = LipschitzPenalty(weight=1.0)
    schedule = ExponentialWeight(penalty, gamma, **limit)
    for _ in range(5):
        schedule.step()
    assert penalty.weight == next(iter(limit.values()))


def test_a_weight_beyond_the_limit_stays():
    penalty = LipschitzPenalty(weight=5.0)
    ExponentialWeight(penalty, 2.0, max_weight=1.0).step()
    assert penalty.weight == 5.0
    penalty.weight = 0.1
    ExponentialWeight(penalty, 0.5, min_weight=1.0).step()
    assert penalty.weight == 0.1


def test_warmup_goes_from_a_tenth_to_exactly_all():
    penalty = LipschitzPenalty(weight=0.3)
    warmup, seen = WeightWarmup(penalty, 7), []
    for _ in range(10):
        seen.append(penalty.weight)
        warmup.step()
    assert seen[0] == pytest.approx(0.03)
    assert seen[:8] == pytest.approx([0.3 * (0.1 + 0.9 * k / 7) for k in range(8)])
    assert seen[7:] == [0.3] * 3


def test_warmup_chains_with_a_factor():
    """Whatever the order, a factor that another schedule applies stays after the warm-up."""
    penalty = LipschitzPenalty(weight=0.3)
    warmup, decay = WeightWarmup(penalty, 4), ExponentialWeight(penalty, 0.5)
    for step in range(6):
        if step in (1, 5):
            decay.step()
        warmup.step()
    assert penalty.weight == pytest.approx(0.3 / 4)


@pytest.mark.parametrize("passed", [0, 1, 3, 12])
@pytest.mark.parametrize("first", ["warmup", "principle"])
def test_warmup_chains_with_that_of_the_principle(first, passed):
    """The own weight comes back, whenever the principle lets it, and comes in from there."""
    penalty = LipschitzPenalty(weight=0.3)
    makers = {
        "warmup": lambda: WeightWarmup(penalty, 10),
        "principle": lambda: DiscrepancyWeight(penalty, 0.5, 0.0, warmup=True),
    }
    made = {name: makers[name]() for name in sorted(makers, key=lambda name: name != first)}
    for step in range(16):
        made["principle"].step(0.9 if step >= passed else 0.1)
        if step == 5:
            state = made["warmup"].state_dict()
            made["warmup"] = WeightWarmup(penalty, 10)
            made["warmup"].load_state_dict(state)
        made["warmup"].step()
        assert penalty.weight == pytest.approx(0.3 * min(1, 0.1 + 0.09 * (step - passed + 1)) if step >= passed else 0)


def test_a_warmup_that_is_made_first_never_lets_all_of_the_weight_in_at_once():
    penalty, seen = LipschitzPenalty(weight=1.0), []
    warmup, principle = WeightWarmup(penalty, 10), DiscrepancyWeight(penalty, 0.9, 0.0, warmup=True)
    for step in range(20):
        warmup.step()
        if step == 12:
            principle.step(0.95)
        seen.append(penalty.weight)
    assert seen[:12] == [0.0] * 12
    assert seen[12:] == pytest.approx([0.1 + 0.09 * k for k in range(8)])


def test_a_factor_that_lands_on_all_of_the_weight_stays():
    """It was taken for a weight that was loaded, and lost."""
    doubled, tenfold = LipschitzPenalty(weight=1.0), LipschitzPenalty(weight=1.0)
    warmups = WeightWarmup(doubled, 9), WeightWarmup(tenfold, 9)
    warmups[0].step()
    assert doubled.weight == pytest.approx(0.2)
    doubled.weight *= 5
    tenfold.weight *= 10
    for _ in range(9):
        for warmup in warmups:
            warmup.step()
    assert (doubled.weight, tenfold.weight) == pytest.approx((5.0, 10.0))


@pytest.mark.parametrize("first", ["penalty", "warmup"])
def test_a_warmup_in_the_middle_resumes_in_any_order(first):
    def made():
        penalty = LipschitzPenalty(weight=0.3)
        return {"penalty": penalty, "warmup": WeightWarmup(penalty, 8)}

    whole, resumed = made(), made()
    for _ in range(3):
        whole["warmup"].step()
    for name in sorted(resumed, key=lambda name: name != first):
        resumed[name].load_state_dict(whole[name].state_dict())
    for _ in range(6):
        for each in (whole, resumed):
            each["warmup"].step()
        assert resumed["penalty"].weight == whole["penalty"].weight


@pytest.mark.parametrize("done", [3, 9])
def test_a_warmup_that_resumes_with_other_steps_goes_on_as_it_was(done):
    """As it was, one that had ended began again, at a tenth of the weight for ten times the steps."""

    def made(steps):
        penalty = LipschitzPenalty(weight=0.3)
        return penalty, WeightWarmup(penalty, steps)

    (whole, warmup), (resumed, longer) = made(8), made(80)
    for _ in range(done):
        warmup.step()
    resumed.load_state_dict(whole.state_dict())
    longer.load_state_dict(warmup.state_dict())
    for _ in range(9):
        warmup.step()
        longer.step()
        assert resumed.weight == whole.weight


@pytest.mark.parametrize("weight", [0.05, 1.3])
@pytest.mark.parametrize("resumed", [0, 3])
def test_warmup_of_a_penalty_whose_state_is_loaded_ends_at_its_weight(resumed, weight):
    """As it was, ten times the weight: the state's was taken for a tenth of it."""
    saved = LipschitzPenalty(weight=weight).state_dict()
    penalty = LipschitzPenalty(weight=0.05)
    warmup = WeightWarmup(penalty, 5)
    for _ in range(resumed):
        warmup.step()
    penalty.load_state_dict(saved)
    for _ in range(5):
        warmup.step()
    assert penalty.weight == weight


def test_a_radius_that_was_taken_away_is_left_so():
    penalty = LipschitzPenalty("max", radius=0.1)
    decay = RadiusDecay(penalty)
    penalty.radius = None
    decay.step()
    assert penalty.radius is None


@pytest.mark.parametrize("bad", ["a", math.nan, [1]])
def test_a_state_of_something_else_than_numbers_is_refused_before_anything_changes(bad):
    penalty = LipschitzPenalty(weight=0.3)
    warmup = WeightWarmup(penalty, 4)
    with pytest.raises(ValueError, match="`state` to hold a finite number as 'count'"):
        warmup.load_state_dict({**warmup.state_dict(), "weight": 9.0, "count": bad})
    assert penalty.weight == 0.3 * 0.1


@pytest.mark.parametrize(("key", "bad"), [("weight", None), ("count", None), ("count", -1), ("count", 1.5)])
def test_a_state_with_a_number_that_cannot_be_is_refused(key, bad):
    warmup = WeightWarmup(LipschitzPenalty(weight=0.3), 4)
    with pytest.raises((TypeError, ValueError), match=f"`state` to hold a finite number as '{key}'|`count`"):
        warmup.load_state_dict({**warmup.state_dict(), key: bad})
    assert warmup.state_dict()["count"] == 0


def test_warmup_leaves_a_weight_alone_that_is_set_after_it():
    penalty = LipschitzPenalty(weight=0.3)
    warmup = WeightWarmup(penalty, 1)
    warmup.step()
    penalty.weight = 7.0
    warmup.step()
    assert penalty.weight == 7.0


def test_warmup_of_the_discrepancy_principle_stops_at_max_weight():
    penalty = LipschitzPenalty(weight=2.0)
    schedule = DiscrepancyWeight(penalty, 0.9, 0.1, max_weight=1.0, warmup=True)
    schedule.step(0.95)
    assert penalty.weight == 1.0


@pytest.mark.parametrize("stop", [0, 2, 5])
@pytest.mark.parametrize("make", [lambda p: WeightWarmup(p, 4), lambda p: ExponentialWeight(p, 0.7)])
def test_they_resume(make, stop):
    def run(penalty, schedule, count):
        for _ in range(count):
            schedule.step()

    penalty, other = LipschitzPenalty(weight=0.3), LipschitzPenalty(weight=0.9)
    schedule = make(penalty)
    run(penalty, schedule, stop)
    resumed = make(other)
    resumed.load_state_dict(schedule.state_dict())
    assert other.weight == penalty.weight
    run(penalty, schedule, 3)
    run(other, resumed, 3)
    assert other.weight == penalty.weight


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda p: ExponentialWeight(p, 0.0), "`gamma`"),
        (lambda p: ExponentialWeight(p, "2"), "`gamma`"),
        (lambda p: ExponentialWeight(p, 2.0, max_weight=-1), "`max_weight`"),
        (lambda p: ExponentialWeight(p, 2.0, max_weight=1, min_weight=2), "`min_weight` to be at most"),
        (lambda p: WeightWarmup(p, 0), "`steps`"),
        (lambda p: WeightWarmup(p, 2.5), "`steps`"),
    ],
)
def test_bad_arguments(build, match):
    penalty = LipschitzPenalty(weight=0.5)
    with pytest.raises((TypeError, ValueError), match=match):
        build(penalty)
    assert penalty.weight == 0.5


@pytest.mark.parametrize("order", [*itertools.permutations(("penalty", "warmup", "other"))], ids="-".join)
@pytest.mark.parametrize("first", ["warmup", "other"])
@pytest.mark.parametrize("steps", [5, 12])
def test_chained_schedules_resume_in_any_order(order, first, steps):
    """The weight that another schedule had lowered was taken for all of it, if the penalty was loaded last."""

    def made():
        penalty = LipschitzPenalty("tv", 1.0)
        return {"penalty": penalty, "warmup": WeightWarmup(penalty, 10), "other": ExponentialWeight(penalty, 0.9)}

    def step(of):
        for name in sorted(("warmup", "other"), key=lambda name: name != first):
            of[name].step()

    whole, resumed = made(), made()
    for _ in range(steps):
        step(whole)
    for name in order:
        resumed[name].load_state_dict(whole[name].state_dict())
    for _ in range(8):
        step(whole)
        step(resumed)
        assert resumed["penalty"].weight == whole["penalty"].weight


@pytest.mark.parametrize("seed", range(40))
def test_a_warmup_in_any_order_of_events_is_its_factor_of_all_the_weight(seed):
    """Steps, factors by others, resumes in both orders, and rollbacks of the penalty alone, against a plain account."""
    rng = random.Random(seed)
    penalty = LipschitzPenalty("tv", 1.0)
    warmup, count, full, saved = WeightWarmup(penalty, 10), 0, 1.0, []

    def factor():
        return 0.1 + 0.9 * count / 10

    for _ in range(60):
        event = rng.choice(["step", "step", "times", "save", "resume", "roll back"])
        if event == "step":
            warmup.step()
            count = min(count + 1, 10)
            assert penalty.weight == pytest.approx(factor() * full)
        elif event == "times":
            by = rng.choice([0.5, 2.0, 3.0])
            penalty.weight, full = penalty.weight * by, full * by
        elif event == "save":
            saved.append((penalty.state_dict(), warmup.state_dict(), count, full))
        elif saved:
            of_penalty, of_warmup, then, then_full = rng.choice(saved)
            if event == "resume":
                loads = [(penalty, of_penalty), (warmup, of_warmup)]
                for loaded, state in rng.sample(loads, 2):
                    loaded.load_state_dict(state)
                count, full = then, then_full
            else:
                penalty.load_state_dict(of_penalty)
                full = of_penalty["weight"]
            warmup.step()
            count = min(count + 1, 10)
            assert penalty.weight == pytest.approx(factor() * full)


@pytest.mark.parametrize("name", ["full", "last"])
def test_a_state_of_negative_weights_is_refused_at_once(name):
    warmup = WeightWarmup(LipschitzPenalty(weight=0.3), 4)
    with pytest.raises(ValueError, match=name):
        warmup.load_state_dict({**warmup.state_dict(), name: -1.0})
