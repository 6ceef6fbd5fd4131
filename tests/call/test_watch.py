"""The share of the penalty's gradient in a run: beside the exact ratio, in warnings, without a trace."""

import copy
import math
import pickle
import warnings
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from zoo import METHODS, bare, conv_bn, gradients, mlp, penalty_of, same

import torchlipreg.call.watch as watching
from torchlipreg import LipschitzPenalty, gradient_ratio
from torchlipreg.call.watch import EARLY, LATE, LOOKS
from torchlipreg.inspection.reuse import AGAIN


@pytest.fixture
def every_call(monkeypatch):
    monkeypatch.setattr(watching, "EARLY", 1)


def steps(net, penalty, count, loss_scale=1.0, n=16, inputs=6, check=None):
    """Train for some steps on labels that follow from the inputs."""
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(count):
        x = torch.randn(n, inputs)
        out, y = net(x), x[:, :3].argmax(1)
        loss, value = F.cross_entropy(out, y), penalty(net, x, out)
        if check is not None:
            check(loss, value)
        (loss_scale * (loss + value)).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("options", [{}, {"radius": 0.0}, {"exponent": 1}, {"interval": 2}], ids=str)
def test_it_is_near_the_exact_ratio(every_call, method, options):
    few = {"num_pairs": 8} if method in ("max", "sum") else {}
    net, penalty, exact = mlp(), bare(method, 0.1, **few, **options), []
    steps(net, penalty, 5, check=lambda loss, value: exact.append(gradient_ratio(loss, value, net.parameters())))
    last = [ratio for ratio in exact if ratio > 0][-1] / options.get("interval", 1)
    assert 0.3 < penalty.share / last < 3


def test_a_ramp_of_the_users_own_at_zero_is_not_told(every_call, recwarn):
    net, penalty = mlp(), bare("tv", 0.1)
    for ramp, count in ((0.0, LOOKS + 5), (1.0, LATE - LOOKS)):
        for _ in range(count):
            x = torch.randn(16, 6)
            out = net(x)
            (F.cross_entropy(out, x[:, :3].argmax(1)) + ramp * penalty(net, x, out)).backward()
        assert (penalty.share is None) == (ramp == 0)
    assert not recwarn


@pytest.mark.parametrize(
    "options", [{}, {"radius": 0.0}, {"num_pairs": 5}, {"one_sided": True, "radius": 0.1}], ids=str
)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1)], ids=str)
def test_one_output_in_any_shape_is_looked_at(shape, method, options):
    if method in ("max", "sum"):
        options = {"num_pairs": 5} | {name: value for name, value in options.items() if name != "one_sided"}
    values = []
    for of_shape in (shape, (1,)):
        torch.manual_seed(0)
        shaped = nn.Unflatten(1, of_shape) if of_shape else nn.Flatten(0)
        model, penalty = nn.Sequential(*mlp(outputs=1), shaped), bare(method, 0.1, **options)
        for _ in range(LATE + EARLY):  # every look there is
            x = torch.randn(16, 6)
            out = model(x)
            value = penalty(model, x, out)
            (out.square().mean() + value).backward()
        values.append((value.item(), penalty.share, penalty.estimate.item()))
    assert values[0] == pytest.approx(values[1], rel=1e-4)


class Silent(torch.autograd.Function):
    """A product with a weight that is trained in another way."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(w)
        return x @ w

    @staticmethod
    def backward(ctx, g):
        return g @ ctx.saved_tensors[0].mT, None


def test_a_weight_without_a_gradient_is_left_out(every_call):
    first, weight, penalty = nn.Linear(6, 8), nn.Parameter(torch.randn(8, 3)), bare("tv", 0.1)
    for _ in range(4):
        x = torch.randn(16, 6)
        out = Silent.apply(first(x), weight)
        value = penalty(lambda z: Silent.apply(first(z), weight), x, out)
        (F.cross_entropy(out, x[:, :3].argmax(1)) + value).backward()
    assert penalty.share > 0


def test_complex_weights_count_whole(every_call):
    weight, penalty, exact = nn.Parameter(torch.randn(6, 3, dtype=torch.complex64)), bare("tv", 0.1), []

    def model(z):
        return (z.to(torch.complex64) @ weight).abs()

    for _ in range(5):
        x = torch.randn(16, 6)
        out = model(x)
        loss, value = F.cross_entropy(out, x[:, :3].argmax(1)), penalty(model, x, out)
        of = [torch.autograd.grad(term, weight, retain_graph=True)[0].abs().norm() for term in (value, loss)]
        exact.append(float(of[0] / of[1]))
        (loss + value).backward()
        weight.grad = None
    assert penalty.share == pytest.approx(exact[-2], rel=1e-3) or penalty.share == pytest.approx(exact[-1], rel=1e-3)


def test_hooks_on_weights_do_not_see_a_look(every_call):
    net, penalty, called = mlp(), bare("tv", 0.1), []
    handle = net[2].weight.register_hook(lambda g: called.append(g.clone()) or g + torch.randn_like(g))
    for _ in range(3):
        x = torch.randn(16, 6)
        out = net(x)
        before, random = len(called), torch.get_rng_state()
        value = penalty(net, x, out)
        assert len(called) == before
        assert torch.equal(torch.get_rng_state(), random)
        (out.square().mean() + value).backward()
        assert len(called) == before + 1
    handle.remove()
    net(x).sum().backward()
    assert len(called) == 3


@pytest.mark.parametrize("loss_scale", [1 / 4, 65536.0, 2.0**80])
def test_accumulation_and_loss_scaling_do_not_show(every_call, loss_scale):
    shares = []
    for scale in (1.0, loss_scale):
        torch.manual_seed(0)
        net, penalty = mlp(), bare("tv", 0.1)
        net.requires_grad_()
        x, y = torch.randn(16, 6), torch.randint(3, (16,))
        out = net(x)
        (scale * (F.cross_entropy(out, y) + penalty(net, x, out))).backward()
        shares.append(penalty.share)
    assert shares[0] == pytest.approx(shares[1], rel=1e-4)


def test_it_is_proportional_to_the_weight(every_call):
    shares = []
    for weight in (0.1, 1.0):
        torch.manual_seed(0)
        net, penalty = mlp(), bare("tv", weight)
        x, y = torch.randn(16, 6), torch.randint(3, (16,))
        out = net(x)
        (F.cross_entropy(out, y) + penalty(net, x, out)).backward()
        shares.append(penalty.share)
    assert shares[1] == pytest.approx(10 * shares[0], rel=1e-4)


def test_looks_leave_the_training_as_it_is(monkeypatch):
    nets = []
    for early in (1, 10_000):
        monkeypatch.setattr(watching, "EARLY", early)
        torch.manual_seed(0)
        net, penalty = conv_bn(), bare("tv", 0.1)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        for _ in range(4):
            x = torch.rand(8, 3, 6, 6)
            out = net(x)
            (out.square().mean() + penalty(net, x, out)).backward()
            optimizer.step()
            optimizer.zero_grad()
        nets.append(net)
        assert (penalty.share is not None) == (early == 1)
    assert all(p.equal(q) for p, q in zip(*(net.state_dict().values() for net in nets), strict=True))


def test_every_eighth_call_then_every_sixty_fourth(monkeypatch):
    looks, penalty, net = [], bare("tv", 0.1), mlp()
    monkeypatch.setattr(penalty._watch, "look", lambda value, fx, rounding: looks.append(penalty._watch._calls))
    for _ in range(EARLY * LOOKS + 3 * LATE):
        penalty(net, torch.randn(4, 6)).backward()
    assert looks[:LOOKS] == list(range(EARLY, EARLY * LOOKS + 1, EARLY))
    assert all(call % LATE == 0 for call in looks[LOOKS:])
    assert len(looks) == LOOKS + 3


def told(net, penalty, count, **options):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        steps(net, penalty, count, **options)
    return [str(w.message) for w in caught]


def test_a_penalty_that_does_nothing_is_told_once(every_call):
    messages = told(mlp(), LipschitzPenalty("tv", 1e-7), LOOKS + 20)
    assert len(messages) == 1
    assert "does nothing" in messages[0]
    assert messages[0].index("normalised") < messages[0].index("weight")
    assert "`normalization`=(mean, std)" in messages[0]


def test_no_word_before_fifty_looks_agree(every_call):
    assert told(mlp(), LipschitzPenalty("tv", 1e-7), LOOKS) == []


@pytest.mark.parametrize("method", METHODS)
def test_a_penalty_that_makes_the_model_constant_is_told_once(every_call, method):
    net = mlp()
    messages = told(net, LipschitzPenalty(method, 1e3, radius=0.1), 4 * LOOKS, n=128)
    assert len(messages) == 1
    assert "under half of what the task wants" in messages[0]
    assert "WeightWarmup" in messages[0]


def test_a_model_of_use_is_told_nothing(every_call):
    """Labels that follow from the inputs, so that the network does not end up constant by itself."""
    net, penalty = mlp(), LipschitzPenalty("tv", 0.1, radius=0.1)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    for _ in range(4 * LOOKS):
        x = torch.randn(32, 6)
        out = net(x)
        (F.cross_entropy(out, x[:, :3].argmax(1)) + penalty(net, x, out)).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert penalty.share > 1e-3


def test_a_backward_of_the_penalty_alone_says_nothing(every_call):
    net, x = mlp(), torch.randn(8, 6)
    penalty = bare("tv", 0.1)
    for _ in range(3):
        penalty(net, x).backward()
    assert penalty.share is None


def test_a_backward_without_the_penalty_says_nothing(every_call):
    net, x = mlp(), torch.randn(8, 6)
    penalty = bare("tv", 0.1)
    for _ in range(3):
        penalty(net, x)
        net(x).square().mean().backward()
    assert penalty.share is None


def test_nothing_stays_on_the_parameters(every_call):
    net, penalty = mlp(), bare("tv", 0.1)
    steps(net, penalty, 3)
    assert not any(p._backward_hooks or p._post_accumulate_grad_hooks for p in net.parameters())
    for _ in range(20):
        penalty(net, torch.randn(8, 6))  # no backward
    assert max(len(p._backward_hooks or {}) for p in net.parameters()) == 1


def test_a_model_can_be_copied_and_saved_while_a_look_waits(every_call, tmp_path):
    net, penalty = mlp(), bare("tv", 0.1)
    value = penalty(net, torch.randn(8, 6))
    torch.save(net, tmp_path / "net.pt")
    copy.deepcopy(net)
    assert same(copy.deepcopy(penalty).pairs, penalty.pairs)
    pickle.dumps(penalty)
    value.backward()


def test_frozen_and_shared_weights(every_call):
    net = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))
    net[0].requires_grad_(False)
    penalty = bare("tv", 0.1)
    steps(net, penalty, 3)
    assert penalty.share > 0
    tied = nn.Sequential(layer := nn.Linear(6, 6), nn.Tanh(), layer, nn.Tanh(), nn.Linear(6, 3))
    penalty = bare("tv", 0.1)
    steps(tied, penalty, 3)
    assert penalty.share > 0


# gradient_ratio


def test_ratio_of_two_gradients():
    w = torch.tensor([3.0, 4.0], requires_grad=True)
    assert gradient_ratio(w.sum(), w.square().sum() / 2, [w]) == pytest.approx(5 / math.sqrt(2))
    assert w.grad is None


def test_ratio_leaves_the_graphs():
    net, x = mlp(), torch.randn(8, 6)
    penalty = bare("tv", 0.1)
    out = net(x)
    loss, value = out.square().mean(), penalty(net, x, out)
    before = gradient_ratio(loss, value, net.parameters())
    assert gradient_ratio(loss, value, net.parameters()) == before
    (loss + value).backward()
    assert gradients(net).norm() > 0


def test_ratio_at_the_ends():
    w, unused = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    zero = torch.zeros(())
    assert gradient_ratio(w.sum(), zero, [w]) == 0
    assert gradient_ratio(w.sum(), unused.sum(), [w]) == 0
    assert gradient_ratio(w.sum() * 0, w.sum(), [w]) == math.inf
    assert gradient_ratio(w.sum() * 0, zero, [w]) == 0


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        (lambda w: (1.0, w.sum(), [w]), TypeError, "`loss` to be a tensor"),
        (lambda w: (w.sum(), 1.0, [w]), TypeError, "`penalty_value` to be a tensor"),
        (lambda w: (w, w.sum(), [w]), ValueError, "`loss` to be 0-dim"),
        (lambda w: (w.sum(), w, [w]), ValueError, "`penalty_value` to be 0-dim"),
        (lambda w: (w.sum().detach(), w.sum(), [w]), ValueError, "`loss` to carry a gradient"),
        (lambda w: (w.sum(), w.sum(), w), TypeError, "`parameters` to be an iterable"),
        (lambda w: (w.sum(), w.sum(), nn.Linear(2, 2)), TypeError, r"model\.parameters"),
        (lambda w: (w.sum(), w.sum(), [w.detach()]), ValueError, "`parameters` to hold"),
        (lambda w: (w.sum(), w.sum(), None), TypeError, "`parameters` to be an iterable.*but got NoneType"),
        (lambda w: (w.sum(), w.sum(), [w, 1]), TypeError, "`parameters` to be an iterable.*but got one with int"),
        (lambda w: (w.sum(), w.sum(), nn.Linear(2, 2).named_parameters()), TypeError, "`parameters`.*one with tuple"),
        (lambda w: (w.sum(), w.sum(), torch.optim.SGD([w]).param_groups), TypeError, "`parameters`.*one with dict"),
    ],
)
def test_bad_input_of_the_ratio(arguments, error, match):
    with pytest.raises(error, match=match):
        gradient_ratio(*arguments(torch.ones(2, requires_grad=True)))


def one_output(offset, **options):
    net = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    penalty = LipschitzPenalty("tv", 0.1, **{"radius": 8 / 255, **options})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(LOOKS + 20):
            x = torch.randn(16, 6)
            out = net(x) + offset
            loss = (out - offset - x[:, :1]).square().mean()
            (loss + penalty(lambda z: net(z) + offset, x)).backward()
            net.zero_grad()
    return [str(w.message) for w in caught]


@pytest.mark.parametrize("options", [{}, {"radius": 0.1, "output_norm": math.inf}, {"scale": 1.0}])
def test_outputs_of_which_rounding_leaves_nothing_are_told_once(every_call, options):
    (message,) = one_output(1e5, **options)
    assert "rounding" in message
    assert "outputs near zero" in message


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_outputs_with_enough_digits_are_not(every_call, offset):
    assert one_output(offset) == []


def test_a_derivative_does_not_round(every_call):
    assert not any("rounding" in message for message in one_output(1e5, radius=0))


@pytest.mark.parametrize("use", ["added", "differentiated", "looked at"])
def test_a_penalty_that_no_loss_holds_is_told(use, monkeypatch):
    monkeypatch.setattr("torchlipreg.call.backwards.UNADDED", 20)
    net, penalty = mlp(), bare("tv", 0.1)
    with pytest.warns(UserWarning, match="no backward came through it") if use == "looked at" else nullcontext():
        for _ in range(25):
            x = torch.randn(8, 6)
            loss = net(x).square().mean() + penalty(net, x)
            if use == "added":
                loss.backward()
            elif use == "differentiated":
                torch.autograd.grad(loss, [*net.parameters()])


@pytest.mark.parametrize("interval", [1, 10])
def test_a_run_that_goes_on_from_a_state_is_not_told(interval, monkeypatch):
    monkeypatch.setattr("torchlipreg.call.backwards.UNADDED", 20)
    net, penalty = mlp(), bare("tv", 0.1, interval=interval)
    for _ in range(30):
        (net(torch.randn(8, 6)).sum() + penalty(net, torch.randn(8, 6))).backward()
    resumed = bare("tv", 0.1, interval=interval)
    resumed.load_state_dict(penalty.state_dict())
    for _ in range(15):  # warnings are errors
        resumed(net, torch.randn(8, 6))


@pytest.mark.parametrize("settings", [{}, {"anchored": False}, {"method": "max"}, {"normalization": (0.5, 2.0)}])
@pytest.mark.parametrize("kind", ["inside", "outside", "one row outside", "NaN"])
def test_later_batches_outside_of_the_bounds_are_told(settings, kind):
    """The first batch alone is refused; as it was, nothing was said of others, whose pairs lie far from them."""
    net, penalty = mlp(), penalty_of(**{"method": "tv", "bounds": (0.25, 1), **settings})
    mean, std = settings.get("normalization", (0.0, 1.0))
    penalty(net, ((torch.rand(48, 6) + 1) / 2 - mean) / std)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2 * AGAIN):
            x = (torch.rand(48, 6) + 1) / 2
            rows = {"inside": 0, "outside": 48, "one row outside": 1, "NaN": 0}[kind]
            x[48 - rows :] += 1.5
            if kind == "NaN":
                x[0] = torch.nan
            penalty(net, (x - mean) / std)
    told = [w for w in caught if "later batch lies outside of `bounds` = (0.25, 1.0)" in str(w.message)]
    assert len(told) == ("outside" in kind)


def test_with_closures_the_share_comes_from_the_call_that_is_added(every_call):
    """The call that moves the pairs meets no backward there; as it was, nobody ever looked."""
    torch.manual_seed(0)
    net, penalty, x = mlp(), bare("tv", 0.1), torch.randn(16, 6)
    optimizer, exact = torch.optim.LBFGS(net.parameters(), max_iter=3), []

    def closure():
        optimizer.zero_grad()
        out = net(x)
        loss, value = F.cross_entropy(out, x[:, :3].argmax(1)), penalty(net, x, out, update=False)
        exact.append(gradient_ratio(loss, value, list(net[-1].parameters())[:1] + list(net[-3].parameters())[:1]))
        (loss + value).backward()
        return loss + value

    for _ in range(3):
        penalty(net, x)
        exact.clear()
        optimizer.step(closure)
        assert len(exact) > 1
        assert penalty.share == pytest.approx(exact[0], rel=1e-4)


def test_what_was_told_is_not_told_again_after_a_load_and_old_looks_are_forgotten(every_call, recwarn):
    net, penalty = mlp(), bare("tv", 1e-12)
    first = penalty.state_dict()
    with pytest.warns(UserWarning, match="does nothing"):
        steps(net, penalty, LOOKS + 5)
    penalty.load_state_dict(first)
    steps(net, penalty, LOOKS + 5)  # warnings are errors
    fresh = bare("tv", 1e-12)
    steps(net, fresh, LOOKS - 5)
    fresh.load_state_dict(first)
    fresh.weight = 0.1
    steps(net, fresh, 10)
    assert not recwarn
