"""Devices that are not at hand, as MPS: nothing in float64, which it has not, and its random numbers are left alone."""

import contextlib
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from zoo import ASCENTS, METHODS, conv_bn, dropout_net, mlp, penalty_of

from torchlipreg import difference_quotient, gradient_ratio, lipschitz_lower_bound, operator_norm
from torchlipreg.model.internals.randomness import forked, generator_states, seeded

NORMS = [1, 2, math.inf]
MPS = torch.device("mps")
DOUBLE = (torch.float64, torch.complex128)


class SinglePrecision(TorchDispatchMode):
    """A device without float64, as far as operations show."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if any(isinstance(t, torch.Tensor) and t.dtype in DOUBLE for t in tree_leaves(result)):
            raise TypeError(f"{func} gave float64")
        return result


@pytest.mark.parametrize("options", [{}, {"radius": 0.0}, {"normalization": (0.5, 0.2)}, {"noise": 0.1}])
@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("ascent", ASCENTS)
@pytest.mark.parametrize("method", METHODS)
def test_a_call_makes_nothing_in_float64(method, ascent, p, options):
    model, x = mlp(), torch.rand(8, 6)
    penalty = penalty_of(method, ascent=ascent, input_norm=p, **options)
    with SinglePrecision():
        for _ in range(2):
            outputs = model(x)
            (outputs.square().mean() + penalty(model, x, outputs)).backward()


@pytest.mark.parametrize("build", [conv_bn, dropout_net])
def test_nor_do_norms_in_train_mode(build):
    model = build().float()
    x = torch.rand(8, *((3, 6, 6) if build is conv_bn else (6,)))
    penalty = penalty_of("tv", stochastic="same")
    with SinglePrecision():
        penalty(model, x, model(x)).backward()


@pytest.mark.parametrize("p", NORMS)
def test_nor_do_measures(p):
    model, x = mlp(), torch.rand(8, 6)
    with SinglePrecision():
        difference_quotient(model, x, x + 0.1, input_norm=p)
        operator_norm(model, x, input_norm=p, output_norm=2 if p == 2 else math.inf)
        gradient_ratio(model(x).sum(), model(x).square().sum(), model.parameters())


def test_a_lower_bound_does_without_it_where_it_must():
    model, x = mlp(), torch.rand(8, 6)
    expected = lipschitz_lower_bound(model, x, radius=0.1)
    with SinglePrecision():
        found = lipschitz_lower_bound(model, x, radius=0.1)
    assert 0.99 * expected < found <= expected


class OneGenerator:
    """What torch.mps has been since before its functions took a device."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(1)

    def get_rng_state(self):
        return self.generator.get_state()

    def set_rng_state(self, state):
        self.generator.set_state(state)

    def manual_seed(self, seed):
        self.generator.manual_seed(seed)


@pytest.fixture
def module(monkeypatch):
    module = OneGenerator()
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    return module


@pytest.mark.parametrize("context", [lambda: forked(MPS), lambda: seeded(3, MPS)])
def test_random_numbers_of_a_device_are_as_before(module, context):
    before = generator_states(MPS)
    with context():
        torch.rand(3), torch.rand(3, generator=module.generator)
        assert not torch.equal(generator_states(MPS), before)
    assert torch.equal(generator_states(MPS), before)


def test_a_seed_gives_a_device_the_same_numbers(module):
    drawn = []
    for _ in range(2):
        with seeded(3, MPS):
            drawn.append(torch.rand(3, generator=module.generator))
        torch.rand(3, generator=module.generator)
    assert torch.equal(*drawn)


class Several:
    """A device with a generator for each of its kind, of which one is current."""

    def __init__(self):
        self.generators, self.current = [torch.Generator().manual_seed(i) for i in range(2)], 0

    def get_rng_state(self, device):
        return self.generators[device.index].get_state()

    def set_rng_state(self, state, device):
        self.generators[device.index].set_state(state)

    def manual_seed(self, seed):
        self.generators[self.current].manual_seed(seed)

    @contextlib.contextmanager
    def device(self, device):
        before, self.current = self.current, device.index
        yield
        self.current = before


@pytest.mark.parametrize("index", [0, 1])
def test_the_generator_of_the_tensors_own_device_is_seeded(index, monkeypatch):
    module, drawn = Several(), []
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    before = [generator.get_state() for generator in module.generators]
    for _ in range(2):
        with seeded(3, torch.device("cuda", index)):
            drawn.append(torch.rand(3, generator=module.generators[index]))
    assert torch.equal(*drawn)
    assert all(torch.equal(g.get_state(), state) for g, state in zip(module.generators, before, strict=True))
