"""The loop's outputs stand for f(x) exactly when they are f(x)."""

import copy
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from zoo import (
    METHODS,
    FunctionalDropout,
    Recurrent,
    Seen,
    StochasticDepth,
    conv_bn,
    dropout_net,
    gradients,
    mlp,
    penalty_of,
)

from torchlipreg.inspection.reuse import AGAIN, SOON
from torchlipreg.outputs import root_probabilities

VECTORS, IMAGES = (8, 6), (8, 3, 6, 6)


class DropPath(nn.Module):
    def __init__(self):
        super().__init__()
        drop_path = pytest.importorskip("timm").layers.DropPath
        self.block, self.last = nn.Sequential(nn.Linear(6, 6), drop_path(0.01)), nn.Linear(6, 3)

    def forward(self, x):
        return self.last(x + self.block(x))


class LayerDrop(nn.Module):
    """As of transformers: the rate is the module's own, or in its configuration."""

    def __init__(self, **rates):
        super().__init__()
        vars(self).update(rates)
        self.net = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3))

    def forward(self, x):
        rate = getattr(self, "layerdrop", None) or self.config.layerdrop
        return self.net[1](x if self.training and torch.rand(()) < rate else self.net[0](x))


class Scaled(nn.Module):
    """Counts its rows, and returns what the test asks for."""

    def __init__(self, wrap=lambda y: y):
        super().__init__()
        self.net, self.wrap, self.rows = mlp(), wrap, Seen()

    def forward(self, x):
        self.rows.append(len(x))
        return self.wrap(self.net(x))


def frozen(net):
    return net.eval()


CASES = {
    "plain": (mlp, VECTORS, True),
    "plain in eval mode": (lambda: frozen(mlp()), VECTORS, True),
    "batchnorm": (conv_bn, IMAGES, False),
    "batchnorm in eval mode": (lambda: frozen(conv_bn()), IMAGES, True),
    "dropout": (dropout_net, VECTORS, False),
    "dropout in eval mode": (lambda: frozen(dropout_net()), VECTORS, True),
    "dropout of rate 0": (lambda: nn.Sequential(nn.Linear(6, 3), nn.Dropout(0.0)), VECTORS, True),
    "rare dropout": (lambda: nn.Sequential(nn.Linear(6, 3), nn.Dropout(1e-6)), VECTORS, False),
    "functional dropout": (FunctionalDropout, VECTORS, False),
    "stochastic depth": (StochasticDepth, VECTORS, False),
    "drop path": (DropPath, VECTORS, False),
    "layerdrop": (lambda: LayerDrop(layerdrop=1e-6), VECTORS, False),
    "configured layerdrop": (lambda: LayerDrop(config=SimpleNamespace(layerdrop=1e-6)), VECTORS, False),
    "layerdrop in eval mode": (lambda: frozen(LayerDrop(layerdrop=1e-6)), VECTORS, True),
    "lstm": (Recurrent, (8, 5, 4), False),
    "lstm without dropout": (lambda: Recurrent(dropout=0.0), (8, 5, 4), True),
}


@pytest.mark.parametrize("anchored_method", ["tv", "ptv"])
@pytest.mark.parametrize("case", CASES)
def test_reused_exactly_when_right_and_never_another_gradient(case, anchored_method):
    build, shape, expected = CASES[case]
    net, x = build().double(), torch.randn(shape, dtype=torch.float64)
    results = []
    for give in (True, False):
        penalty = penalty_of(anchored_method)
        for _ in range(2):
            net.zero_grad()
            out = net(x)
            buffers = {name: b.clone() for name, b in net.named_buffers()}
            penalty(net, x, out if give else None).backward()
            assert all(torch.equal(b, buffers[name]) for name, b in net.named_buffers())
            for name, b in net.named_buffers():  # each round starts from the same running statistics
                b.copy_(torch.ones_like(b) if "var" in name else torch.zeros_like(b))
        results.append(gradients(net))
        assert penalty.reuses_outputs is (expected if give else None)
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda net, x: net(x).detach(),
        lambda net, x: net(x + 0.01),
        lambda net, x: net(x).bfloat16(),
        lambda net, x: net(x) * torch.tensor([1.0, 1.0, float("nan")]),
        lambda net, x: net(x).softmax(1),
    ],
    ids=["detached", "of another x", "rounded", "not finite", "probabilities"],
)
def test_other_values_are_not_used(spoil):
    net, x = mlp(), torch.randn(VECTORS)
    given, alone = penalty_of("tv"), penalty_of("tv")
    assert torch.equal(given(net, x, spoil(net, x)), alone(net, x))
    assert given.reuses_outputs is False


def test_outputs_of_a_call_under_no_grad_are_not_used():
    net, x = mlp(), torch.randn(VECTORS)
    with torch.no_grad():
        out = net(x)
    penalty = penalty_of("tv")
    assert penalty(net, x, out).requires_grad
    assert penalty.reuses_outputs is False


@pytest.mark.parametrize("begins", [1, SOON + 1])
@pytest.mark.parametrize("probe", [torch.no_grad, None], ids=["no_grad", "detach"])
def test_outputs_of_a_part_are_not_used_though_their_values_are_the_same(probe, begins):
    """The loop trains the head alone; f(x) of its outputs would pull at the body, with f(x′) let go."""
    body, head = nn.Sequential(nn.Linear(6, 4), nn.Tanh()).double(), nn.Linear(4, 3).double()
    net, x = nn.Sequential(body, head), torch.randn(VECTORS, dtype=torch.float64)
    results = []
    for give in (True, False):
        penalty = penalty_of("tv")
        for step in range(3 * SOON):
            out = net(x) if step < begins - 1 else None
            if out is None:
                with probe() if probe else nullcontext():
                    features = body(x)
                out = head(features if probe else features.detach())
            net.zero_grad()
            penalty(net, x, out if give else None).backward()
        results.append(gradients(net))
        assert penalty.reuses_outputs is (False if give else None)
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-12)


def test_a_call_without_gradients_decides_nothing_about_the_graph():
    body, head, x = nn.Sequential(nn.Linear(6, 4), nn.Tanh()), nn.Linear(4, 3), torch.randn(VECTORS)
    net, penalty = nn.Sequential(body, head), penalty_of("tv")
    outputs = head(body(x).detach())
    with torch.no_grad():
        penalty(net, x, outputs)
    penalty(net, x, outputs)
    assert penalty.reuses_outputs is False


def test_a_configuration_of_any_kind_is_left_alone():
    class Attributes(dict):
        __getattr__ = dict.__getitem__

    net, x = mlp(), torch.randn(VECTORS)
    net.config = Attributes(hidden=3)
    penalty = penalty_of("tv")
    penalty(net, x, net(x))
    assert penalty.reuses_outputs is True


def test_outputs_of_autocast_are_not_used():
    net, x, penalty = mlp(), torch.randn(VECTORS), penalty_of("tv")
    with torch.autocast("cpu", torch.bfloat16):
        penalty(net, x, net(x).float())
    assert penalty.reuses_outputs is False
    penalty(net, x, net(x))
    assert penalty.reuses_outputs is True


def test_the_verdict_follows_the_training_flags():
    net, x, penalty = dropout_net(), torch.randn(VECTORS), penalty_of("tv")
    assert penalty.reuses_outputs is None
    verdicts = []
    for mode in (True, False, True):
        net.train(mode)
        penalty(net, x, net(x))
        verdicts.append(penalty.reuses_outputs)
    assert verdicts == [False, True, False]


def test_reuse_saves_the_forward_of_the_data_points():
    net, x, penalty = Scaled(), torch.randn(VECTORS), penalty_of("tv")
    rows = []
    for outputs in (*(net(x) for _ in range(6)), None):
        net.rows.items.clear()
        penalty(net, x, outputs)
        rows.append(sum(net.rows.items) // len(x))
    assert rows == [7, 2, 2, 2, 3, 2, 3]  # the first call compares, after four to look at; the fourth later again


def test_the_chosen_rows_of_the_outputs_are_used():
    net, x = mlp(), torch.randn(VECTORS)
    given, alone = penalty_of("tv", num_pairs=3), penalty_of("tv", num_pairs=3)
    for _ in range(3):
        torch.testing.assert_close(given(net, x, net(x)), alone(net, x))
    assert given.reuses_outputs is True


FORMS = {
    "tuple": lambda y: (y, None),
    "list": lambda y: [y],
    "dict": lambda y: {"loss": None, "logits": y},
    "dict without logits": lambda y: {"prediction": y, "aux": None},
    "object": lambda y: SimpleNamespace(logits=y, loss=None),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("method", METHODS)
def test_outputs_in_any_form(form, method):
    net, x = Scaled(), torch.randn(VECTORS)
    plain = penalty_of(method)(net, x, net(x))
    net.wrap, penalty = FORMS[form], penalty_of(method)
    assert torch.equal(penalty(net, x, net(x)), plain)
    assert penalty.reuses_outputs is (True if method in ("tv", "ptv") else None)


def test_the_users_output_applies_to_both():
    net, x = Scaled(lambda y: (None, {"score": y})), torch.randn(VECTORS)
    penalty, plain = penalty_of("tv", output=lambda y: y[1]["score"]), penalty_of("tv")
    assert torch.equal(penalty(net, x, net(x)), plain(net.net, x))
    assert penalty.reuses_outputs is True


@pytest.mark.parametrize("wrong", [lambda y: y[:5], lambda y: y[:, :2], lambda y: y.unsqueeze(1)])
def test_outputs_of_another_shape_are_refused(wrong):
    net, x, penalty = mlp(), torch.randn(VECTORS), penalty_of("tv")
    with pytest.raises(ValueError, match="`outputs`"):
        penalty(net, x, wrong(net(x)))
    penalty(net, x, net(x))
    with pytest.raises(ValueError, match="`outputs`"):
        penalty(net, x, wrong(net(x)))


def test_a_last_layer_of_zeros_proves_nothing():
    torch.manual_seed(0)
    net, x, penalty = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)), torch.randn(8, 6), penalty_of("tv")
    nn.init.zeros_(net[2].weight), nn.init.zeros_(net[2].bias)
    penalty(net, x, net(x))
    assert penalty.reuses_outputs is False
    nn.init.normal_(net[2].weight)
    penalty(net, x, net(x))
    assert penalty.reuses_outputs is True


@pytest.mark.parametrize("bias", [0.0, 1.0])
def test_rounded_outputs_are_told_behind_root_probabilities_too(bias):
    net, x = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)), torch.randn(8, 6)
    nn.init.zeros_(net[2].weight), nn.init.constant_(net[2].bias, bias)  # the same outputs, rounded or not
    penalty = penalty_of("tv", output=root_probabilities)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = net(x)
    penalty(net, x, outputs)
    assert penalty.reuses_outputs is False
    penalty(net, x, net(x))
    assert penalty.reuses_outputs is False  # still nothing to compare by: look again
    nn.init.normal_(net[2].weight)
    penalty(net, x, net(x))
    assert penalty.reuses_outputs is True


def test_train_mode_batchnorm_is_never_f_of_x():
    net, x, penalty = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 3)), torch.randn(8, 6), penalty_of("tv")
    nn.init.zeros_(net[1].weight)  # the same outputs in both modes
    penalty(net, x, net(x))
    assert penalty.reuses_outputs is False


@pytest.mark.parametrize("radius", [0.1, 0.01])
def test_data_that_leave_the_bounds_later_give_no_quotient_above_the_norm(radius):
    torch.manual_seed(0)
    net, x = nn.Linear(6, 3), torch.rand(8, 6)
    penalty = penalty_of("tv", radius=radius, bounds=(0, 1))
    for batch in (x, x + 0.2):
        penalty(net, batch, net(batch))
        assert penalty.estimate <= 1.001 * torch.linalg.matrix_norm(net.weight, 2)


@pytest.mark.parametrize("give_outputs", [True, False])
def test_no_gradient_goes_upstream_of_x(give_outputs):
    net, embeddings = mlp(), torch.randn(8, 6, requires_grad=True)
    penalty_of("tv")(net, embeddings, net(embeddings) if give_outputs else None).backward()
    assert embeddings.grad is None


# The verdict belongs to a model, and is looked at again


class Noise(nn.Module):
    """Noise in train mode, at a level that may change."""

    def __init__(self, sigma):
        super().__init__()
        self.sigma = sigma

    def forward(self, x):
        return x + self.sigma * torch.randn_like(x) if self.training else x


def noisy(sigma):
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), Noise(sigma), nn.Linear(8, 3)).train()


def value_at(net, pairs):
    frozen = copy.deepcopy(net).eval()
    q = (frozen(pairs.x_prime) - frozen(pairs.x)).norm(dim=1) / (pairs.x_prime - pairs.x).norm(dim=1)
    return q.square().mean()


@pytest.mark.parametrize("through", [lambda net: net, lambda net: lambda z: net(z)], ids=["module", "lambda"])
@pytest.mark.parametrize("order", [(0.0, 0.5), (0.5, 0.0)])
def test_one_penalty_on_two_models_in_turn(order, through):
    nets, penalty = [noisy(sigma) for sigma in order], penalty_of("tv")
    for _ in range(3):
        for net, sigma in zip(nets, order, strict=True):
            x = torch.randn(16, 6)
            value = penalty(through(net), x, net(x))
            torch.testing.assert_close(value, value_at(net, penalty.pairs))
            assert penalty.reuses_outputs == (sigma == 0)


def test_outputs_of_a_later_batch_that_are_not_f_of_x_are_noticed_soon():
    net, penalty = mlp(), penalty_of("tv")
    x = torch.randn(VECTORS)
    penalty(net, x, net(x))
    for _ in range(6):  # the loop mixes its batches, and passes what they were before
        penalty(net, x, net(x.flip(0)))
    assert not penalty.reuses_outputs
    value = penalty(net, x, net(x.flip(0)))
    torch.testing.assert_close(value, value_at(net, penalty.pairs))


def test_noise_that_is_scheduled_up_is_noticed():
    net, penalty = noisy(0.0), penalty_of("tv")
    for _ in range(3):
        x = torch.randn(16, 6)
        penalty(net, x, net(x))
    assert penalty.reuses_outputs
    net[2].sigma = 0.5
    for _ in range(2 * AGAIN):
        x = torch.randn(16, 6)
        value = penalty(net, x, net(x))
    assert not penalty.reuses_outputs
    torch.testing.assert_close(value, value_at(net, penalty.pairs))


class Drifts(nn.Module):
    """Its state moves its values by less than float32 would show."""

    def __init__(self, drift):
        super().__init__()
        self.net, self.drift = mlp(), drift
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def forward(self, x):
        self.count += 1
        return self.net(x) * (1 + self.drift * self.count)


@pytest.mark.parametrize("drift", [1e-2, 1e-6, 0.0])
def test_outputs_of_a_model_that_drifts_are_not_reused(drift):
    net, x = Drifts(drift).double(), torch.randn(8, 6, dtype=torch.float64)
    penalty = penalty_of("tv", radius=1e-3)
    for _ in range(2):
        value = penalty(net, x, net(x))
        torch.testing.assert_close(value, penalty(net, x, update=False), rtol=1e-12, atol=0)
        assert penalty.reuses_outputs == (drift == 0)
