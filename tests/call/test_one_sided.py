"""One-sided: f(x) is a target without gradient, as in virtual adversarial training."""

import pytest
import torch
from torch import nn
from zoo import bare, conv_bn, dropout_net, gradients, mlp

from torchlipreg import LipschitzPenalty
from torchlipreg.outputs import per_position

OPTIONS = {"weight": 1.0, "radius": 0.1}


@pytest.mark.parametrize("method", ["tv", "ptv"])
@pytest.mark.parametrize("give", [True, False])
@pytest.mark.parametrize("build", [mlp, dropout_net])
def test_the_gradient_is_that_of_the_moved_end(method, give, build):
    net, x = build().double().eval(), torch.randn(8, 6, dtype=torch.float64)
    penalty = bare(method, one_sided=True, **OPTIONS)
    value = penalty(net, x, net(x) if give else None)
    value.backward()
    found = gradients(net).clone()
    net.zero_grad()
    pairs = penalty.pairs
    moved = (net(pairs.x_prime) - net(pairs.x).detach()).norm(dim=1) / (pairs.x_prime - pairs.x).norm(dim=1)
    moved.square().mean().backward()
    torch.testing.assert_close(found, gradients(net))
    two_sided = bare(method, **OPTIONS)(net, x)
    torch.testing.assert_close(value, two_sided)  # the value is the same, only its gradient differs
    net.zero_grad()
    two_sided.backward()
    assert (gradients(net) - found).norm() > 0.1 * found.norm()


@pytest.mark.parametrize("build", [mlp, dropout_net])
def test_so_it_is_at_the_last_calls_pairs(build):
    """As with closures of L-BFGS and with SAM."""
    net, x = build().double().eval(), torch.randn(8, 6, dtype=torch.float64)
    penalty = bare("tv", one_sided=True, **OPTIONS)
    penalty(net, x, net(x)).backward()
    wanted = gradients(net).clone()
    net.zero_grad()
    penalty(net, x, net(x), update=False).backward()
    torch.testing.assert_close(gradients(net), wanted)


def test_a_radius_that_falls_under_what_is_resolved_is_held_there(recwarn):
    net, x = mlp(), torch.randn(8, 6)
    penalty = bare("tv", one_sided=True, weight=1.0, radius=1e-3)
    penalty(net, x)
    assert not recwarn
    penalty.radius = 1e-5
    with pytest.warns(UserWarning, match=r"`radius`=1e-05 has fallen under .* it is held"):
        value = penalty(net, x)
    value.backward()
    penalty.radius = 1e-6
    recwarn.clear()
    penalty(net, x)
    assert not recwarn  # told once
    found = gradients(net).double()
    net = net.double()
    net.zero_grad()
    (x, x_prime), floor = penalty.pairs.map(torch.Tensor.double), penalty._state.floor
    distance = (x_prime - x).norm(dim=1)
    assert (distance <= 1.001 * floor).all()
    assert (distance.max() > 0.9 * floor).all()
    assert found.isfinite().all()


def test_outputs_without_a_gradient_serve():
    net, x = mlp(), torch.randn(8, 6)
    with torch.no_grad():
        out = net(x)
    penalty = bare("tv", one_sided=True, **OPTIONS)
    assert penalty(net, x, out).requires_grad
    assert penalty.reuses_outputs


def test_batchnorm_in_train_mode():
    net, x = conv_bn().train(), torch.rand(8, 3, 6, 6)
    penalty = bare("tv", one_sided=True, **OPTIONS)
    penalty(net, x).backward()
    assert gradients(net).isfinite().all()


@pytest.mark.parametrize("settings", [{"method": "max"}, {"method": "sum"}, {"anchored": False}], ids=str)
def test_only_where_there_is_a_data_point(settings):
    with pytest.raises(ValueError, match=r"`one_sided`=True with `method`='tv' or 'ptv' and `anchored`=True"):
        LipschitzPenalty(one_sided=True, **settings)


def test_the_limit_has_no_target():
    with pytest.raises(ValueError, match="`radius` > 0 with `one_sided`=True"):
        LipschitzPenalty(one_sided=True, radius=0)
    penalty = LipschitzPenalty(one_sided=True)
    with pytest.raises(ValueError, match="`radius` > 0"):
        penalty.radius = 0.0
    penalty.radius = 1e-9
    with pytest.raises(ValueError, match=r"at least what torch.float32 resolves"):
        penalty(mlp(), torch.randn(8, 6))


def test_it_has_to_be_true_or_false():
    with pytest.raises(TypeError, match="`one_sided` to be True or False"):
        LipschitzPenalty(one_sided=1)


@pytest.mark.parametrize(
    "settings",
    [
        {"output_norm": 1},
        {"output_norm": 1, "exponent": 1},
        {"exponent": 1, "output": per_position},
        {"output_norm": 1, "num_pairs": 2},
    ],
    ids=lambda settings: " ".join(settings),
)
def test_where_outputs_do_not_move_rounding_is_not_pulled_at(settings):
    """ℓ1 moves one pixel; between the loop's f(x) and f(x′) the others' outputs differ by rounding alone."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, 5, 3, padding=1))
    x, normalization = torch.randn(4, 3, 16, 16), ((0.49, 0.48, 0.45), (0.25, 0.24, 0.26))
    gradients = []
    for outputs in (None, net(x)):
        penalty = bare("tv", 1.0, radius=0.1, input_norm=1, one_sided=True, normalization=normalization, **settings)
        gradients.append(torch.autograd.grad(penalty(net, x, outputs), list(net.parameters())))
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-6 * float(gradients[0][0].abs().max()))
