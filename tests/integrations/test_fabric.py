"""Lightning Fabric: the line with what ``fabric.setup`` returns, in each precision; saving and loading."""

from __future__ import annotations

import copy
import importlib

import pytest
import torch
from torch import nn
from zoo import Seen

pytest.importorskip("lightning")
from torchlipreg import LipschitzPenalty

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fp16 is not supported on CPU"),
    pytest.mark.filterwarnings("ignore:.*The `radius`"),
]


@pytest.fixture(params=["lightning.fabric", "lightning_fabric"])
def package(request):
    return pytest.importorskip(request.param)


def new_fabric(package, precision="32-true"):
    return package.Fabric(accelerator="cpu", devices=1, precision=precision)


def build(method="tv", weight=0.5, **options):
    return LipschitzPenalty(method, weight, **{"radius": 0.01, "input_norm": 2, "num_pairs": 6, **options})


def net(dtype=torch.float32):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)).to(dtype)


def batch(step=0, dtype=torch.float32):
    return torch.randn(8, 6, generator=torch.Generator().manual_seed(step), dtype=torch.float64).to(dtype)


def task_loss(y):
    return y.square().mean()


def gradient(module):
    """All gradients in one row; the last bias has none where ε is zero."""
    return torch.cat([(0 * p if p.grad is None else p.grad).detach().flatten() for p in module.parameters()]).double()


TRUE = {"32-true": torch.float32, "bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64}


@pytest.mark.filterwarnings("ignore:.*limit ε → 0")  # half precision does not resolve the radius
@pytest.mark.parametrize("method", ["tv", "max"])
@pytest.mark.parametrize("precision", [*TRUE, "bf16-mixed", "16-mixed"])
def test_the_penalty_is_that_of_the_bare_model(package, precision, method):
    """In float32 under mixed precision, in the parameters' own dtype else; gradients by ``fabric.backward``."""
    fabric, dtype = new_fabric(package, precision), TRUE.get(precision, torch.float32)
    bare, inner, seen = net(dtype), net(), Seen()
    wrapped, optimizer = fabric.setup(inner, torch.optim.SGD(inner.parameters(), 0.1))
    inner[0].register_forward_hook(lambda module, args, y: seen.append(y.dtype))
    penalty, reference = build(method), build(method)
    for step in range(3):
        x = batch(step)
        y = wrapped(x)
        of_training = len(seen)
        value = penalty(wrapped, x, y)
        expected = reference(bare, x)
        fabric.backward(value + 0 * task_loss(y))
        expected.backward()
        got, wanted = gradient(inner), gradient(bare)
        tolerance = {torch.float64: 1e-12, torch.float32: 1e-4}.get(dtype, 1e-2)
        assert value.dtype == expected.dtype
        torch.testing.assert_close(value, expected, rtol=tolerance, atol=0)
        torch.testing.assert_close(penalty.estimate, reference.estimate, rtol=tolerance, atol=0)
        assert float((got - wanted).norm() / wanted.norm()) <= tolerance
        of_model = torch.bfloat16 if "mixed" in precision else dtype
        assert set(seen[:of_training]) == {of_model}
        in_limit = {torch.float64} if dtype.itemsize < 4 else set()  # where the derivative is compared with differences
        assert {dtype} <= set(seen[of_training:]) <= {dtype} | in_limit
        seen.clear()
        optimizer.zero_grad()
        bare.zero_grad()


def test_float64_outputs_that_fabric_rounded_are_not_reused(package):
    """At a radius that float64 alone resolves, they would be noise."""
    fabric, penalty, reference = new_fabric(package, "64-true"), build(radius=1e-7), build(radius=1e-7)
    model, x = fabric.setup(net()), batch()
    y = model(x)
    assert y.dtype == torch.float32
    torch.testing.assert_close(penalty(model, x, y), reference(net(torch.float64), x), rtol=1e-6, atol=0)
    assert penalty.reuses_outputs is False


def test_full_precision_reuses_the_outputs(package):
    fabric, penalty = new_fabric(package), build()
    model = fabric.setup(net())
    penalty(model, batch(), model(batch()))
    assert penalty.reuses_outputs


def test_nothing_of_the_wrapper_changes(package):
    fabric = new_fabric(package, "bf16-mixed")
    model, x = fabric.setup(nn.Sequential(net(), nn.BatchNorm1d(3), nn.Dropout(0.5))), batch()
    before, flags = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    build()(model, x)
    assert [m.training for m in model.modules()] == flags
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_marked_method(package):
    class Module(nn.Module):
        def __init__(self, penalty):
            super().__init__()
            self.net, self.penalty = net(), penalty

        def forward(self, x):
            return self.net(x)

        def step(self, x):
            y = self(x)
            return task_loss(y) + self.penalty(self, x, y)

    fabric, penalty, reference = new_fabric(package, "bf16-mixed"), build(), build()
    model = fabric.setup(Module(penalty))
    model.mark_forward_method("step")
    fabric.backward(model.step(batch()))
    reference(net(), batch())
    assert penalty.was_added
    torch.testing.assert_close(penalty.estimate, reference.estimate, rtol=1e-5, atol=0)


@pytest.mark.compiler
def test_a_compiled_model(package):
    fabric, penalty, reference = new_fabric(package, "bf16-mixed"), build(), build()
    model = fabric.setup(torch.compile(net(), backend="eager"))
    y = model(batch())
    fabric.backward(task_loss(y) + penalty(model, batch(), y))
    reference(net(), batch())
    torch.testing.assert_close(penalty.estimate, reference.estimate, rtol=1e-5, atol=0)


def train(package, steps, path=None, save_at=None, resume=False, with_penalty=True):
    """Train; save after some step, or go on from what was saved."""
    fabric, penalty = new_fabric(package), build("max")
    model = net()
    model, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), 0.1, momentum=0.9))
    state = {"model": model, "optimizer": optimizer, "step": 0}
    if with_penalty:
        state["penalty"] = penalty
    if resume:
        fabric.load(path, state, strict=with_penalty)
    for step in range(state["step"], steps):
        x = batch(step)
        y = model(x)
        fabric.backward(task_loss(y) + penalty(model, x, y))
        optimizer.step()
        optimizer.zero_grad()
        if step + 1 == save_at:
            penalty.synchronize()
            fabric.save(path, {**state, "step": step + 1})
    return model.state_dict(), penalty


def test_resumed_equals_uninterrupted(package, tmp_path):
    path = tmp_path / "state.ckpt"
    whole, penalty = train(package, 8, path, save_at=4)
    resumed, again = train(package, 8, path, resume=True)
    without, _ = train(package, 8, path, resume=True, with_penalty=False)
    torch.load(path, weights_only=True)
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())
    assert torch.equal(again.pairs.x_prime, penalty.pairs.x_prime)
    assert not all(torch.equal(without[name], value) for name, value in whole.items())


def test_both_packages_have_the_wrapper_that_is_looked_for():
    for name in ("lightning.fabric.wrappers", "lightning_fabric.wrappers"):
        wrapper = pytest.importorskip(name)._FabricModule
        assert "_forward_module" in wrapper(net(), importlib.import_module(name.rpartition(".")[0]).Fabric)._modules
