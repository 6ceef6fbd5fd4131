"""Models, outputs, inputs and settings as they come."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from zoo import ASCENTS, METHODS, Recurrent, conv_bn, dropout_net, gradients, mlp, penalty_of, same, traces

from torchlipreg import LipschitzPenalty

WEIGHT = torch.randn(3, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
LOCAL = ("tv", "ptv")

MODELS = {
    "function": (lambda: lambda x: x @ WEIGHT.T, (8, 6)),
    "module": (mlp, (8, 6)),
    "conv and batchnorm": (conv_bn, (8, 3, 6, 6)),
    "dropout": (dropout_net, (8, 6)),
    "lstm": (Recurrent, (8, 5, 4)),
    "transformer": (
        lambda: nn.Sequential(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), nn.Flatten()),
        (4, 5, 4),
    ),
    "sequence of vectors": (lambda: nn.Linear(4, 3), (8, 5, 4)),
    "one number": (lambda: lambda x: (x @ WEIGHT.T).sum(1), (8, 6)),
}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("radius", [0.1, 0.0])
def test_models(kind, method, radius):
    build, shape = MODELS[kind]
    model, penalty = build(), penalty_of(method, radius=radius)
    WEIGHT.grad = None
    for n in (shape[0], 3, shape[0]):  # a short batch between
        x = torch.randn(n, *shape[1:])
        value = penalty(model, x, model(x))
        assert value.shape == ()
        assert value.dtype == torch.float32
        assert value > 0
        assert penalty.pairs.x.shape[1:] == penalty.pairs.x_prime.shape[1:] == shape[1:]
    value.backward()
    grad = gradients(model) if isinstance(model, nn.Module) else WEIGHT.grad
    assert grad.isfinite().all()
    assert grad.abs().max() > 0
    assert 0 < penalty.estimate < math.inf
    assert not penalty.estimate.requires_grad


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_efficientnet", "test_convnext", "test_byobnet"])
@pytest.mark.parametrize(
    "settings", [{"method": "tv"}, {"method": "max", "num_pairs": 2}, {"method": "tv", "radius": 0.0}]
)
def test_models_of_timm(name, settings):
    timm = pytest.importorskip("timm")
    if name not in timm.list_models("test_*"):
        pytest.skip(f"this timm has no {name}")
    size = {"img_size": 32} if "vit" in name else {}
    net = timm.create_model(name, num_classes=3, **size).train()
    penalty, x = LipschitzPenalty(weight=1.0, **settings), torch.rand(3, 3, 32, 32)
    before = traces(net)
    value = penalty(net, x)
    assert same(traces(net), before)
    value.backward()
    assert 0 < value < math.inf
    assert gradients(net).isfinite().all()
    assert gradients(net).abs().max() > 0


# ---- outputs and inputs --------------------------------------------------------------------------------------------

FORMS = {
    "tuple": (lambda y: (y, None), None),
    "list": (lambda y: [y, None], None),
    "logits in a dict": (lambda y: {"loss": None, "logits": y}, None),
    "dict": (lambda y: {"prediction": y}, None),
    "object with logits": (lambda y: SimpleNamespace(logits=y, loss=None), None),
    "named by the user": (lambda y: SimpleNamespace(heads=[None, y]), lambda y: y.heads[1]),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("radius", [0.1, 0.0])
def test_forms_of_output(form, method, radius):
    wrap, output = FORMS[form]
    net, x = mlp(), torch.randn(8, 6)
    penalty, plain = penalty_of(method, output=output, radius=radius), penalty_of(method, radius=radius)
    assert same(penalty(lambda z: wrap(net(z)), x), plain(net, x))


@pytest.mark.parametrize("shape", [(8,), (8, 1), (8, 4), (8, 2, 3), (8, 3, 8, 8), (8, 2, 3, 2, 2)])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("radius", [0.1, 0.0])
def test_inputs_of_any_rank(shape, method, radius):
    x, scale = torch.randn(shape), torch.tensor(2.0, requires_grad=True)
    penalty = penalty_of(method, radius=radius, power=1)
    value = penalty(lambda z: scale * z, x)  # every quotient is 2
    torch.testing.assert_close(value, torch.tensor(2.0), rtol=1e-4, atol=0)
    value.backward()
    torch.testing.assert_close(scale.grad, torch.tensor(1.0), rtol=1e-4, atol=0)


@pytest.mark.parametrize("method", LOCAL)
@pytest.mark.parametrize("num_pairs", [1, 3, 8, 20, None])
def test_points_of_the_batch_that_are_used(method, num_pairs):
    net, x, seen = mlp(), torch.randn(8, 6), set()
    penalty = LipschitzPenalty(method, num_pairs=num_pairs)
    for _ in range(20):
        penalty(net, x)
        rows = [int((x == row).all(1).nonzero()) for row in penalty.pairs.x]
        assert len(rows) == len(set(rows)) == min(num_pairs or 8, 8)
        seen.update(rows)
    assert seen == set(range(8))


@pytest.mark.parametrize("method", ["max", "sum"])
@pytest.mark.parametrize("num_pairs", [1, 3, 20])
def test_size_of_the_pair_set(method, num_pairs):
    net, penalty = mlp(), LipschitzPenalty(method, num_pairs=num_pairs)
    for n in (8, 2, 1, 8):
        penalty(net, torch.randn(n, 6))
        assert penalty.pairs.x.shape == (num_pairs, 6)
    assert LipschitzPenalty(method).settings.num_pairs == 64


# ---- interval, weight, update --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_interval_applies_the_penalty_in_every_kth_call_times_k(method):
    net, x = mlp(), torch.randn(8, 6)
    every, third = penalty_of(method), penalty_of(method, interval=3)
    values = [third(net, x) for _ in range(7)]
    assert [bool(v > 0) for v in values] == [True, False, False, True, False, False, True]
    torch.testing.assert_close(values[0], 3 * every(net, x))
    assert not values[1].requires_grad


def test_interval_keeps_the_mean_gradient():
    net, x = mlp().double(), torch.randn(8, 6, dtype=torch.float64)
    sums = []
    for interval in (1, 4):
        net.zero_grad()
        penalty = penalty_of("tv", interval=interval, input_norm=math.inf, ascent_steps=8)
        for _ in range(40):
            value = penalty(net, x)
            if value.requires_grad:
                value.backward()
        sums.append(gradients(net))
    torch.testing.assert_close(*sums, rtol=0.05, atol=0.05 * float(sums[0].abs().max()))


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.forwards = mlp(), 0

    def forward(self, x):
        self.forwards += 1
        return self.net(x)


@pytest.mark.parametrize("method", METHODS)
def test_without_weight_there_is_no_forward(method):
    net, x, penalty = Counting(), torch.randn(8, 6), penalty_of(method, weight=0.0)
    before = penalty.state_dict()
    value = penalty(net, x)
    assert torch.equal(value, torch.zeros(()))
    assert net.forwards == 0
    assert same(penalty.state_dict(), before)
    (net(x).sum() + value).backward()
    penalty.weight = 1.0
    assert penalty(net, x) > 0


def train(net, penalty, steps=5):
    """Train with Dropout and return all that the run leaves behind, the random state included."""
    torch.manual_seed(1)
    optimizer = torch.optim.Adam(net.parameters())
    for _ in range(steps):
        x, y = torch.randn(8, 6), torch.randint(3, (8,))
        out = net(x)
        loss = nn.functional.cross_entropy(out, y)
        if penalty is not None:
            loss = loss + penalty(net, x, out)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return traces(net)


@pytest.mark.parametrize("method", METHODS)
def test_without_weight_training_is_bit_for_bit_the_plain_run(method):
    net = dropout_net()
    runs = [train(copy.deepcopy(net), p) for p in (None, penalty_of(method, weight=0.0), penalty_of(method))]
    keys = ("buffers", "parameters", "random")
    plain, unweighted, weighted = ({k: run[k] for k in keys} for run in runs)
    assert same(unweighted, plain)
    assert not same(weighted, plain)
    assert same(weighted["random"], plain["random"])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ascent", ASCENTS)
@pytest.mark.parametrize("radius", [0.1, 0.0])
def test_without_update_the_pairs_of_the_last_call_come_again(method, ascent, radius):
    net, x = mlp().double(), torch.randn(8, 6, dtype=torch.float64)
    penalty = penalty_of(method, ascent=ascent, radius=radius)
    for _ in range(3):
        value = penalty(net, x)
    estimate, state = penalty.estimate, penalty.state_dict()
    for _ in range(2):
        again = penalty(net, x, update=False)
        torch.testing.assert_close(again, value, rtol=1e-12, atol=0)
        torch.testing.assert_close(penalty.estimate, estimate, rtol=1e-12, atol=0)
    state["estimate"] = penalty.state_dict()["estimate"]
    assert same(penalty.state_dict(), state)
    gradient = [torch.autograd.grad(v, net[0].weight)[0] for v in (value, again)]
    torch.testing.assert_close(*gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_without_update_in_the_first_call(method):
    net, x = mlp(), torch.randn(8, 6)
    penalty, fresh = penalty_of(method), penalty_of(method)
    assert torch.equal(penalty(net, x, update=False), penalty(net, x, update=False))
    assert penalty.pairs is None
    assert torch.equal(penalty(net, x), fresh(net, x))


def test_without_update_a_skipped_call_stays_skipped():
    net, x, penalty = mlp(), torch.randn(8, 6), penalty_of("tv", interval=2)
    values = [[penalty(net, x), penalty(net, x, update=False)] for _ in range(4)]
    assert [[bool(v > 0) for v in pair] for pair in values] == [[True, True], [False, False]] * 2


@pytest.mark.parametrize("method", METHODS)
def test_a_closure_of_lbfgs_sees_one_function(method):
    net, x, y = mlp(), torch.randn(8, 6), torch.randint(3, (8,))
    penalty = penalty_of(method, weight=0.01)
    optimizer = torch.optim.LBFGS(net.parameters(), max_iter=10, line_search_fn="strong_wolfe")
    losses = []
    for _ in range(3):
        penalty(net, x)
        pairs = penalty.pairs

        def closure():
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(x), y) + penalty(net, x, update=False)
            loss.backward()
            return loss

        losses.append([optimizer.step(closure).detach(), closure().detach()])
        assert penalty.pairs is pairs
    assert all(after < before for before, after in losses)


# ---- domain, noise, seeds ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ascent", ASCENTS)
@pytest.mark.parametrize("norm", [1, 2, math.inf])
@pytest.mark.parametrize("anchored", [True, False])
def test_pairs_stay_within_the_bounds(method, ascent, norm, anchored):
    net, x = mlp(), torch.rand(8, 6)
    step_size = {} if ascent == "power" else {"step_size": 10.0}
    penalty = penalty_of(
        method, ascent=ascent, input_norm=norm, bounds=(0, 1), radius=0.8, noise=1.0, anchored=anchored, **step_size
    )
    seen = []
    net[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    for _ in range(3):
        assert penalty(net, x).isfinite()
        shown = penalty.pairs if ascent == "nesterov" else [*penalty.pairs, *seen]  # which looks ahead, past the bounds
        for z in shown:
            assert z.min() >= 0
            assert z.max() <= 1
    unbounded = penalty_of(
        method, ascent=ascent, input_norm=norm, radius=0.8, noise=1.0, anchored=anchored, **step_size
    )
    unbounded(net, x)
    assert unbounded.pairs.x_prime.min() < 0


@pytest.mark.parametrize("method", METHODS)
def test_noise_moves_the_start_of_free_points_only(method):
    x = torch.zeros(500, 6) + torch.arange(500.0).unsqueeze(1)
    flat = torch.tensor(1.0, requires_grad=True)
    quiet, noisy = (
        LipschitzPenalty(method, num_pairs=500, radius=1e-1, noise=s, ascent="sgd", step_size=1e-30) for s in (0.0, 2.0)
    )
    for penalty in (quiet, noisy):
        penalty(lambda z: flat * z, x)
    difference = [b - a for a, b in zip(quiet.pairs, noisy.pairs, strict=True)]
    if method in LOCAL:
        assert torch.equal(difference[0], torch.zeros_like(x))
    if method != "ptv":  # which projects on its sphere
        torch.testing.assert_close(difference[1].std(), torch.tensor(2.0), rtol=0.1, atol=0)
        assert difference[1].mean().abs() < 0.2


@pytest.mark.parametrize("method", METHODS)
def test_seeds(method):
    net, x = mlp(), torch.randn(8, 6)

    def pairs(seed):
        torch.manual_seed(seed + 7)  # must not matter
        penalty = penalty_of(method, seed=seed)
        for _ in range(3):
            penalty(net, x)
        return penalty.pairs

    assert same(pairs(0), pairs(0))
    assert not same(pairs(0), pairs(1))


# ---- what the user looks at ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("power", [1, 2])
def test_the_estimate_is_the_largest_quotient_of_the_pairs(method, power):
    net, x = mlp(), torch.randn(8, 6)
    penalty = penalty_of(method, weight=0.5, power=power)
    assert penalty.estimate == 0
    assert penalty.pairs is None
    value = penalty(net, x)
    a, b = penalty.pairs
    with torch.no_grad():
        q = (net(a) - net(b)).norm(dim=1) / (a - b).norm(dim=1)
    torch.testing.assert_close(penalty.estimate, q.max(), rtol=1e-4, atol=0)
    reduced = q.max() ** power if method == "max" else (q**power).mean()
    torch.testing.assert_close(value.detach(), 0.5 * reduced, rtol=1e-4, atol=0)


def test_the_gradient_goes_to_the_parameters_only():
    net, x = mlp(), torch.randn(8, 6, requires_grad=True)
    penalty_of("tv")(net, x).backward()
    assert x.grad is None
    assert gradients(net).abs().max() > 0


def test_repr_rebuilds_the_penalty():
    penalty = LipschitzPenalty("ptv", 0.5, radius=0.2, input_norm=math.inf, bounds=(0, 1), interval=2, seed=3)
    twin = eval(repr(penalty), {"LipschitzPenalty": LipschitzPenalty, "inf": math.inf})
    assert repr(twin) == repr(penalty)
    assert twin.settings == penalty.settings
    assert (twin.weight, twin.radius) == (0.5, 0.2)
    for shown in ("'ptv'", "weight=0.5", "radius=0.2", "input_norm=inf", "interval=2"):
        assert shown in repr(penalty)
