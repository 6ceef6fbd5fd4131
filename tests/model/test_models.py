"""Models, outputs and inputs as they come."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from zoo import METHODS, Recurrent, bare, conv_bn, dropout_net, gradients, mlp, penalty_of, same, traces

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
    penalty, x = bare(weight=1.0, **settings), torch.rand(3, 3, 32, 32)
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
    penalty = penalty_of(method, radius=radius, exponent=1)
    value = penalty(lambda z: scale * z, x)  # every quotient is 2
    torch.testing.assert_close(value, torch.tensor(2.0), rtol=1e-4, atol=0)
    value.backward()
    torch.testing.assert_close(scale.grad, torch.tensor(1.0), rtol=1e-4, atol=0)


@pytest.mark.parametrize("method", LOCAL)
@pytest.mark.parametrize("num_pairs", [1, 3, 8, 20, None])
def test_points_of_the_batch_that_are_used(method, num_pairs):
    net, x, seen = mlp(), torch.randn(8, 6), set()
    penalty = bare(method, num_pairs=num_pairs)
    for _ in range(20):
        penalty(net, x)
        rows = [int((x == row).all(1).nonzero()) for row in penalty.pairs.x]
        assert len(rows) == len(set(rows)) == min(num_pairs or 8, 8)
        seen.update(rows)
    assert seen == set(range(8))


@pytest.mark.parametrize("method", ["max", "sum"])
@pytest.mark.parametrize("num_pairs", [1, 3, 20])
def test_size_of_the_pair_set(method, num_pairs):
    net, penalty = mlp(), bare(method, num_pairs=num_pairs)
    for n in (8, 2, 1, 8):
        penalty(net, torch.randn(n, 6))
        assert penalty.pairs.x.shape == (num_pairs, 6)
    assert bare(method).settings.num_pairs == 64
