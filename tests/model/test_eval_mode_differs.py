"""Not as in the loop: no gradient in eval mode, weights that torch keeps, an `output` with state of its own."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from zoo import METHODS, bare, gradients, mlp, penalty_of

from torchlipreg import operator_norm


class GradientInTraining(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = mlp()

    def forward(self, x):
        with torch.set_grad_enabled(self.training):
            return self.body(x)


@pytest.mark.parametrize("lent", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_no_gradient_in_eval_mode_is_refused_whatever_the_outputs_carry(method, lent):
    model, x = GradientInTraining(), torch.rand(8, 6)
    outputs = model(x) if lent else None
    with pytest.raises(ValueError, match=r"carry a gradient.*self\.training"):
        penalty_of(method)(model, x, outputs)


def test_nor_do_outputs_stand_for_it_where_nothing_moves():
    model, x = GradientInTraining(), torch.rand(8, 6)
    assert not bare("tv")(model, x, model(x), update=False).requires_grad


class PartlyInTraining(nn.Module):
    """Of which a part has a graph in train mode only."""

    def __init__(self):
        super().__init__()
        self.body, self.part = mlp(), mlp()

    def forward(self, x):
        with torch.set_grad_enabled(self.training):
            part = self.part(x)
        return self.body(x) + part


def test_a_part_without_gradient_in_eval_mode_is_told_and_not_pulled_at():
    """With `outputs` its f(x) alone would be, by many times the gradient."""
    model, x = PartlyInTraining(), torch.rand(8, 6)
    penalty = penalty_of("tv")
    with pytest.warns(UserWarning, match=r"no gradient where it is held fixed.*: Linear\.bias, Linear\.weight"):
        value = penalty(model, x, model(x))
    assert penalty.reuses_outputs is False
    value.backward()
    assert not gradients(model.part).any()
    assert gradients(model.body).any()


class Auxiliary(nn.Module):
    """Whose second head does not count: always there, in train mode only, or held on to by a factor of zero."""

    def __init__(self, kind):
        super().__init__()
        self.body, self.first, self.second, self.kind = nn.Linear(6, 5), nn.Linear(5, 3), nn.Linear(5, 3), kind

    def forward(self, x):
        h = self.body(x).relu()
        if self.kind == "zero":
            return self.first(h) + (0 * self.second(h).sum() if self.training else 0)
        return (self.first(h), self.second(h)) if self.training or self.kind == "always" else self.first(h)


class OneNode(torch.autograd.Function):
    """Of all outputs, as those of DDP and of torch.compile are."""

    @staticmethod
    def forward(ctx, *outputs):
        return tuple(y.clone() for y in outputs)

    @staticmethod
    def backward(ctx, *gradients):
        return gradients


@pytest.mark.parametrize("kind", ["always", "training", "zero"])
def test_what_the_graph_of_the_outputs_holds_beside_them_does_not_count(kind):
    model, x = Auxiliary(kind), torch.rand(8, 6)
    outputs = model(x)
    penalty = penalty_of("tv")
    penalty(model, x, outputs if kind == "zero" else OneNode.apply(*outputs)).backward()
    assert penalty.reuses_outputs is True


class Noisy(nn.Module):
    """A weight whose spread is learned, and read in train mode only."""

    def __init__(self):
        super().__init__()
        self.mean, self.spread = (nn.Parameter(torch.rand(3, 6)) for _ in range(2))

    def forward(self, x):
        return x @ (self.mean + self.spread * torch.randn(3, 6) if self.training else self.mean).T


def test_noise_that_is_learned_is_not_told():
    model, x = Noisy(), torch.rand(8, 6)
    penalty = penalty_of("tv")
    penalty(model, x, model(x))  # warnings are errors
    assert penalty.reuses_outputs is False


class Potential(nn.Module):
    def __init__(self):
        super().__init__()
        self.energy = mlp()

    def forward(self, x):
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            energy = self.energy(x).sum(1)
            force = torch.autograd.grad(energy.sum(), x, create_graph=self.training)[0]
        return {"energy": energy, "force": force}


def test_a_graph_that_the_forward_frees_in_eval_mode_is_named():
    penalty = penalty_of("tv", output=lambda y: y["energy"])
    with pytest.raises(RuntimeError, match=r"differentiates inside.*`create_graph=torch\.is_grad_enabled\(\)`"):
        penalty(Potential(), torch.rand(8, 6))


def head():
    return nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5), spectral_norm(nn.Linear(3, 2)))


@pytest.mark.parametrize("options", [{}, {"update": False}], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_an_output_with_state_is_left_as_it_was(method, options):
    model, output, x = mlp(), head(), torch.rand(8, 6)
    penalty = penalty_of(method, output=output)
    for _ in range(3):
        outputs = model(x)
        before, numbers = {k: v.clone() for k, v in output.state_dict().items()}, torch.get_rng_state()
        penalty(model, x, outputs, **options)
        assert all(torch.equal(v, before[k]) for k, v in output.state_dict().items())
        assert torch.equal(torch.get_rng_state(), numbers)


def test_an_output_that_draws_numbers_draws_the_same():
    def output(y):
        return y @ torch.randn(3, 2)

    model, x = mlp(), torch.rand(8, 6)
    values = [
        bare("tv", output=output, stochastic="same", seed=1)(model, x, given).item() for given in (None, model(x))
    ]
    assert values[0] == pytest.approx(values[1], rel=1e-5)
    assert values[0] > 0
    numbers = torch.get_rng_state()
    bare("tv", output=output, stochastic="same")(model, x, model(x))
    assert torch.equal(torch.get_rng_state(), numbers)


def normed():
    torch.manual_seed(0)
    return nn.Sequential(weight_norm(nn.Linear(6, 8)), nn.Tanh(), weight_norm(nn.Linear(8, 3)))


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("options", [{}, {"one_sided": True, "radius": 0.1}, {"radius": 0.0}], ids=str)
def test_cached_weights_are_neither_read_nor_left(options, first):
    found = []
    for cached in (False, True):
        model, penalty, x = (
            normed(),
            bare("tv", 1.0, **options),
            torch.rand(8, 6, generator=torch.Generator().manual_seed(0)),
        )
        for _ in range(2):
            model.zero_grad()
            with parametrize.cached() if cached else torch.enable_grad():
                value = penalty(model, x) if first else 0
                loss = model(x).square().mean()
                value = value if first else penalty(model, x)
            (loss + value).backward()
        found.append(gradients(model))
    torch.testing.assert_close(*found)
    assert not parametrize._cache
    assert parametrize._cache_enabled == 0


def test_nor_by_a_measure():
    model, x = normed(), torch.rand(8, 6)
    with parametrize.cached():
        operator_norm(model, x)
        model(x).square().mean().backward()
    assert gradients(model).all()


def test_a_layer_that_iterates_in_training_does_so_beside_a_penalty():
    model, x = nn.Sequential(spectral_norm(nn.Linear(6, 3))), torch.rand(8, 6)
    before = model.state_dict()["0.parametrizations.weight.0._u"].clone()
    with parametrize.cached():
        bare("tv")(model, x)
        model(x)
    assert not torch.equal(model.state_dict()["0.parametrizations.weight.0._u"], before)
