"""BatchNorm in train mode: the values of eval mode, with a gradient that knows that the statistics will follow."""

import contextlib
import copy
import time
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from zoo import METHODS, gradients, penalty_of

from torchlipreg import lipschitz_lower_bound
from torchlipreg.model.fixed import fixed_function
from torchlipreg.model.norms.batchnorm import channel_moments


def build():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(64, 6), nn.BatchNorm1d(6), nn.Tanh()
    ).double()


def calibrate(net, x):
    """Set running statistics to those of a batch, layer by layer in eval mode, as the fixed function passes it on."""

    def set_statistics(m, inputs):
        var, mean = torch.var_mean(inputs[0].detach(), [0, *range(2, inputs[0].dim())], correction=0)
        m.running_mean, m.running_var = mean, var

    hooks = [m.register_forward_pre_hook(set_statistics) for m in (net[1], net[5])]
    modes = [m.training for m in net]
    with torch.no_grad():
        net.eval()(x)
    for m, mode in zip(net, modes, strict=True):
        m.train(mode)
    for hook in hooks:
        hook.remove()


@pytest.fixture
def batch():
    return torch.randn(8, 1, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def reference(method, batch):
    """Return as many data points as there are pairs."""
    return batch[:4] if method in ("max", "sum") else batch


@pytest.mark.parametrize("radius", [0.0, 0.1])
@pytest.mark.parametrize("method", METHODS)
def test_the_value_is_that_of_eval_mode(method, radius, batch):
    net = build().train()
    net(batch)  # statistics between the initial ones and the batch's
    train, evaluated = (penalty_of(method, radius=radius)(n, batch) for n in (net, copy.deepcopy(net).eval()))
    torch.testing.assert_close(train, evaluated, rtol=1e-10, atol=0)


@pytest.mark.parametrize("radius", [0.0, 0.1])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("lost", [False, True])
def test_the_gradient_is_that_of_a_function_whose_statistics_are_measured_anew(lost, method, radius, batch):
    # central differences of the penalty, with running statistics set to the batch's at each place in parameter space
    net = build().train()
    penalty = penalty_of(method, radius=radius)
    penalty(net, batch)
    whole = reference(method, batch)
    if lost:  # rows that do not count take no part in the statistics, zeros in their place as little
        batch, whole = batch.clone(), whole[::2].clone()
        batch[1::2] = torch.nan
    calibrate(net, whole)
    penalty(net, batch)
    gradient = torch.autograd.grad(penalty(net, batch, update=False), list(net.parameters()))
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        direction = [torch.randn(p.shape, dtype=p.dtype, generator=generator) for p in net.parameters()]
        values = []
        for sign in (1, -2, 1):
            with torch.no_grad():
                for p, d in zip(net.parameters(), direction, strict=True):
                    p += sign * 1e-5 * d
            calibrate(net, whole)
            values.append(penalty(net, batch, update=False).item())
        slope = (values[0] - values[1]) / 2e-5
        inner = sum((g * d).sum().item() for g, d in zip(gradient, direction, strict=True))
        assert inner == pytest.approx(slope, rel=1e-4, abs=1e-9)
        assert abs(slope) > 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_nothing_pushes_what_batchnorm_undoes(method, batch):
    net = build().train()
    calibrate(net, reference(method, batch))
    penalty_of(method)(net, batch).backward()
    for layer in (net[0], net[4]):
        torch.testing.assert_close(layer.bias.grad, torch.zeros_like(layer.bias), atol=1e-9, rtol=0)
        # the variance's ε is all that keeps the scale from being undone exactly
        assert (layer.weight.grad * layer.weight).sum().abs() < 1e-2 * layer.weight.grad.norm() * layer.weight.norm()


@pytest.mark.parametrize("shape", [(5, 3), (5, 3, 4), (5, 3, 2, 4), (1, 3, 2, 2)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_moments_are_those_of_var_mean(shape, dtype, tolerance):
    h = torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(0)).add(2).requires_grad_()
    slow = torch.var_mean(h, [0, *range(2, h.dim())], correction=0)
    results = []
    for var, mean in (channel_moments(h), slow):
        value = (torch.arange(3, dtype=dtype) * var).sum() + mean.square().sum()
        results.append((var, mean, *torch.autograd.grad(value, h)))
    torch.testing.assert_close(*results, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shape", [(5, 3), (4, 3, 2, 2)])
def test_moments_have_both_derivatives(shape):
    h = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(channel_moments, h)
    assert torch.autograd.gradgradcheck(channel_moments, h)


def test_moments_in_half_precision_do_not_overflow():
    h = torch.tensor([[300.0], [-300.0], [0.0], [0.0]], dtype=torch.float16)
    assert channel_moments(h)[0].item() == pytest.approx(45000, rel=1e-3)


def test_no_trace_is_left(batch):
    net = build().train()
    before = [(m._parameters, m._buffers, dict(m._forward_pre_hooks)) for m in net.modules()]
    with fixed_function(net) as f:
        f.follow_statistics(batch)
    after = [(m._parameters, m._buffers, dict(m._forward_pre_hooks)) for m in net.modules()]
    for (p, b, h), (q, c, g) in zip(before, after, strict=True):
        assert p is q
        assert b is c
        assert h == g


def test_without_gradients_or_training_there_is_nothing_to_follow(batch):
    net = build()
    for context, mode in ((torch.no_grad(), True), (torch.enable_grad(), False)):
        with context, fixed_function(net.train(mode)) as f:
            assert not f.follows


@pytest.mark.parametrize("method", ["max", "tv"])
def test_rows_that_are_not_finite_leave_a_finite_gradient(method, batch):
    net, penalty = build().train(), penalty_of(method)
    penalty(net, batch)
    bad = batch.clone()
    bad[3, 0, 2, 2] = float("nan")
    penalty(net, bad).backward()
    assert all(g.isfinite().all() for g in gradients(net) if g is not None)
    with pytest.warns(UserWarning, match="NaN"):
        penalty.warn_of_data()
    assert penalty.estimate.isfinite()


def test_a_penalised_network_with_batchnorm_learns():
    # With statistics held constant this network ends at chance in eval mode while its training loss is small.
    datasets = pytest.importorskip("sklearn.datasets")
    images, labels = datasets.load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32).view(-1, 1, 8, 8), torch.tensor(labels)
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10)),
    )
    penalty = penalty_of("tv", weight=1e-3, input_norm=float("inf"), radius=0.1)
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    for _ in range(6):
        for rows in torch.randperm(1500).split(64):
            out = net(x[rows])
            optimizer.zero_grad()
            (F.cross_entropy(out, y[rows]) + penalty(net, x[rows], out)).backward()
            optimizer.step()
    with torch.no_grad():
        accuracy = (net.eval()(x[1500:]).argmax(1) == y[1500:]).float().mean()
    assert accuracy > 0.8


class Twice(nn.Module):
    """One BatchNorm that is called twice, once by keyword."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 5)

    def forward(self, x):
        return self.norm(input=torch.tanh(self.last(torch.tanh(self.norm(self.first(x))))))


class InParts(nn.Module):
    """One that sees its batch in two parts."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 5))

    def forward(self, x):
        return torch.cat([self.net(part) for part in x.chunk(2)])


@pytest.mark.parametrize("method", ["tv", "ptv"])
@pytest.mark.parametrize("make", [Twice, InParts])
def test_both_ends_of_a_pair_see_the_same_statistics_where_a_norm_is_called_twice(make, method):
    """Else the gradient grows without bound as the radius falls."""
    found = []
    for radius in (1e-3, 1e-5, 0.0):
        torch.manual_seed(0)
        net, x = make().double().train(), torch.randn(8, 6, dtype=torch.float64)
        penalty_of(method, radius=radius, output_norm=2)(net, x).backward()
        found.append(gradients(net))
    for ours in found[:2]:
        assert (ours - found[2]).norm() < 0.01 * found[2].norm()


@pytest.mark.parametrize("method", ["max", "tv"])
@pytest.mark.parametrize(
    "make",
    [
        Twice,
        lambda: nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5, affine=False), nn.Tanh()),
        lambda: nn.Sequential(nn.Linear(6, 5), nn.utils.parametrizations.spectral_norm(nn.BatchNorm1d(5), dim=0)),
    ],
    ids=["called twice", "without parameters", "parametrised"],
)
def test_unusual_modules_have_the_value_of_eval_mode_too(make, method):
    torch.manual_seed(0)
    net, x = make().double().train(), torch.randn(8, 6, dtype=torch.float64)
    for m in net.modules():
        if isinstance(m, nn.BatchNorm1d) and m.affine and "weight" in m._parameters:
            nn.init.uniform_(m.weight, 0.5, 2.0)
    evaluated = copy.deepcopy(net).eval()
    told = any(type(m).__name__ == "ParametrizedBatchNorm1d" for m in net.modules())
    with pytest.warns(UserWarning, match="held constant") if told else contextlib.nullcontext():
        value = penalty_of(method)(net, x)
    torch.testing.assert_close(value, penalty_of(method)(evaluated, x), rtol=1e-10, atol=0)


class OnePlusWeight(nn.BatchNorm1d):
    """As norms whose weights are centred at zero."""

    def forward(self, x):
        args = self.running_mean, self.running_var, 1 + self.weight, self.bias, self.training, self.momentum, self.eps
        return F.batch_norm(x, *args)


class WithSlope(nn.BatchNorm1d):
    """A parameter of its own."""

    def __init__(self, channels):
        super().__init__(channels)
        self.slope = nn.Parameter(torch.full((channels,), 0.25))

    def forward(self, x):
        return F.prelu(super().forward(x), self.slope)


class Ghost(nn.BatchNorm1d):
    """Statistics of parts of the batch (as in cifar10-fast), in longer buffers."""

    def __init__(self, channels):
        super().__init__(channels)
        self.register_buffer("running_mean", torch.zeros(2 * channels))
        self.register_buffer("running_var", torch.ones(2 * channels))

    def forward(self, x):
        n, c = x.shape
        if self.training:
            weight, bias = self.weight.repeat(2), self.bias.repeat(2)
            y = F.batch_norm(x.view(-1, 2 * c), self.running_mean, self.running_var, weight, bias, True, 0.1, self.eps)
            return y.view(n, c)
        args = self.running_mean[:c], self.running_var[:c], self.weight, self.bias, False, 0.1, self.eps
        return F.batch_norm(x, *args)


class Blend(nn.BatchNorm1d):
    """Another formula in eval mode."""

    def forward(self, x):
        if self.training:
            return super().forward(x)
        return self.weight * (x - self.running_mean) / (self.running_var.sqrt() + self.eps) + self.bias


class OfAnotherMake(nn.Module):
    """No subclass of torch's."""

    def __init__(self, channels):
        super().__init__()
        self.momentum = 0.1
        self.weight = nn.Parameter(torch.ones(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x):
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, None, self.training, self.momentum)


@pytest.mark.parametrize("method", ["max", "tv"])
@pytest.mark.parametrize("radius", [0.1, 0.0])
@pytest.mark.parametrize("norm", [OnePlusWeight, WithSlope, Ghost, Blend, OfAnotherMake])
def test_subclasses_with_a_formula_of_their_own_are_held_and_told(norm, radius, method):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), norm(8), nn.Tanh(), nn.Linear(8, 3)).double().train()
    with torch.no_grad():
        for _ in range(20):
            net(torch.randn(64, 6, dtype=torch.float64) * 3 + 2)
        net[1].weight += 0.3 * torch.randn(8)
    x = torch.randn(16, 6, dtype=torch.float64) * 3 + 2
    evaluated = copy.deepcopy(net).eval()
    with pytest.warns(UserWarning, match=f"{norm.__name__} in train mode: its statistics are held constant"):
        value = penalty_of(method, radius=radius)(net, x)
    exact = penalty_of(method, radius=radius)(evaluated, x)
    value.backward()
    exact.backward()
    torch.testing.assert_close(value, exact, rtol=1e-10, atol=0)
    torch.testing.assert_close(gradients(net), gradients(evaluated), rtol=1e-8, atol=1e-12)


def test_a_dead_channel_without_epsilon_leaves_a_finite_gradient():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.BatchNorm1d(5, eps=0.0), nn.Linear(5, 3)), torch.randn(8, 6)
    with torch.no_grad():
        net[0].bias[2] = -100.0
    penalty_of("tv")(net, x).backward()
    assert gradients(net).isfinite().all()


def test_a_frozen_norm_of_another_make_is_no_norm_in_train_mode():
    ops = pytest.importorskip("torchvision.ops")
    net = nn.Sequential(nn.Conv2d(3, 4, 3), ops.FrozenBatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 3))
    x, penalty = torch.randn(8, 3, 8, 8), penalty_of("tv")
    penalty(net, x, net(x))  # a warning would be an error
    assert penalty.reuses_outputs is True


class OfConstants(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(6))

    def forward(self, x):
        return x - self.running_mean


def test_constant_statistics_of_another_make_are_no_norm_in_train_mode():
    net, x, penalty = nn.Sequential(OfConstants(), nn.Linear(6, 3)), torch.randn(8, 6), penalty_of("tv")
    for _ in range(2):
        penalty(net, x, net(x))
    assert penalty.reuses_outputs is True


def test_a_norm_of_torch_is_one_whatever_its_name():
    class FrozenByName(nn.BatchNorm1d):
        pass

    net = nn.Sequential(nn.Linear(6, 5), FrozenByName(5), nn.Linear(5, 3))
    with pytest.warns(UserWarning, match="FrozenByName in train mode"):
        penalty_of("tv")(net, torch.randn(8, 6))


class PastItsCall(nn.Module):
    """Uses a BatchNorm in one of the ways in which it is not called."""

    def __init__(self, how):
        super().__init__()
        self.first, self.norm, self.last, self.how = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3), how

    def forward(self, x):
        return self.last(torch.tanh(self.how(self.norm, self.first(x))))


def functional(norm, h):
    return F.batch_norm(h, norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.training)


def by_hand(norm, h):
    return h / (norm.running_var + norm.eps).sqrt()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("how", "follows"),
    [(functional, False), (by_hand, False), (nn.BatchNorm1d.forward, False), (nn.BatchNorm1d.__call__, True)],
)
def test_a_norm_whose_statistics_are_used_past_its_call_is_told(how, follows, method, training, recwarn):
    model, x = PastItsCall(how).train(training), torch.rand(16, 6)
    model(x)
    penalty_of(method)(model, x, model(x)).backward()
    assert len(recwarn) == (training and not follows)
    assert all("BatchNorm1d in train mode" in str(w.message) for w in recwarn)


@pytest.mark.compiler
def test_a_norm_that_was_exported_in_eval_mode_is_none(recwarn):
    net, x = PastItsCall(nn.BatchNorm1d.__call__).eval(), torch.rand(16, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own
        exported = torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim("n", min=2)},)).module()
    torch.testing.assert_close(penalty_of("tv")(exported, x), penalty_of("tv")(net, x))
    assert not recwarn


def test_a_norm_that_does_not_run_is_not(recwarn):
    model, x = PastItsCall(lambda norm, h: h), torch.rand(16, 6)
    penalty_of("tv")(model, x, model(x)).backward()
    assert not recwarn


@pytest.mark.parametrize("training", [True, False])
def test_an_ensemble_by_vmap_is_held_and_told(training):
    nets = [nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)).train(training) for _ in range(3)]
    parameters, buffers = torch.func.stack_module_state(nets)
    base, x = copy.deepcopy(nets[0]).to("meta"), torch.rand(16, 6)

    def ensemble(x):
        def member(p, b):
            return torch.func.functional_call(base, (p, b), (x,))

        return torch.vmap(member)(parameters, buffers).transpose(0, 1)

    def one_by_one(x):
        return torch.stack([net(x) for net in nets], 1)

    for net in nets:
        net.eval()
    with pytest.warns(UserWarning, match="torch.func transform") if training else contextlib.nullcontext():
        found = penalty_of("tv")(ensemble, x)
    torch.testing.assert_close(found, penalty_of("tv")(one_by_one, x))


def test_norms_of_several_kinds_are_told_once(recwarn):
    net = nn.Sequential(PastItsCall(functional), nn.Linear(3, 8), OnePlusWeight(8), nn.Linear(8, 2))
    penalty, x = penalty_of("tv"), torch.rand(16, 6)
    for _ in range(2):
        penalty(net, x, net(x)).backward()
    assert ["statistics are held constant" in str(w.message) for w in recwarn] == [True]
    recwarn.clear()
    lipschitz_lower_bound(net, x)  # which holds everything
    assert not recwarn


def test_the_look_at_many_norms_takes_no_longer_for_each():
    def seconds(count):
        net = nn.Sequential(nn.Linear(6, 8), *[nn.BatchNorm1d(8) for _ in range(count)], nn.Linear(8, 3))
        x = torch.rand(16, 6)
        net(x)
        start = time.perf_counter()
        penalty_of("tv")(net, x)
        return time.perf_counter() - start

    seconds(4)
    assert min(seconds(160) for _ in range(3)) < 16 * min(seconds(20) for _ in range(3))
