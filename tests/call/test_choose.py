"""``choose``: which points of a batch a local method uses, from the outputs of the training loop."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from zoo import Seen, bare

from torchlipreg.outputs import default_output, root_probabilities, smallest_margins

CLOSEST = {"num_pairs": 6, "choose": smallest_margins}


def net_and_batch(n=16):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(n, 5)


def last_rows(y, count):
    return torch.arange(len(y))[-count:]


@pytest.mark.parametrize("method", ["tv", "ptv"])
@pytest.mark.parametrize("settings", [{}, {"input_norm": math.inf}, {"radius": 0.0}, {"anchored": False}])
@pytest.mark.parametrize("output", [None, root_probabilities])
def test_chosen_points_are_those_that_a_user_would_have_chosen(method, settings, output):
    net, x = net_and_batch()
    chooses = bare(method, 1.0, output=output, seed=3, **settings, **CLOSEST)
    chosen = bare(method, 1.0, output=output, seed=3, **settings)
    for _ in range(2):
        close = smallest_margins(net(x), 6)
        ours, slow = chooses(net, x, net(x)), chosen(net, x[close], net(x)[close])
        assert torch.equal(ours, slow)
        assert torch.equal(chooses.pairs.x_prime, chosen.pairs.x_prime)
        gradients = [torch.autograd.grad(v, net.parameters(), materialize_grads=True) for v in (ours, slow)]
        for one, other in zip(*gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
        x = x + 0.5


def test_the_outputs_of_the_loop_serve_and_rows_that_are_not_chosen_cost_nothing():
    net, x = net_and_batch()
    calls = Seen()
    net.register_forward_hook(lambda module, args, y: calls.append(len(y)))
    penalty = bare("tv", **CLOSEST)
    for _ in range(4):
        calls.items.clear()
        penalty(net, x, net(x))
    assert penalty.reuses_outputs
    assert calls.items == [16, 6, 6]  # the loop's, the ascent's, the penalty's


def test_it_is_asked_once_in_each_call_that_draws_pairs():
    net, x = net_and_batch()
    asked = []

    def choose(y, count):
        asked.append(count)
        return last_rows(y, count)

    penalty = bare("tv", num_pairs=6, choose=choose, interval=2, output=root_probabilities)
    out = net(x)
    for _ in range(4):
        penalty(net, x, out)
    penalty(net, x, update=False)
    with torch.no_grad():
        penalty(net, x)
    assert asked == [6, 6]
    assert torch.equal(penalty.pairs.x, x[-6:])


def test_a_short_batch_is_taken_whole():
    net, x = net_and_batch(6)
    penalty = bare("tv", num_pairs=6, choose=lambda y, count: 1 / 0)
    penalty(net, x, net(x))
    assert torch.equal(penalty.pairs.x, x)


@pytest.mark.parametrize("rows", [[0, 3, 3], [-1], list(range(16)) * 2])
@pytest.mark.parametrize("settings", [{}, {"radius": 0.0}, {"anchored": False}])
def test_rows_may_be_fewer_or_more_or_repeated(rows, settings):
    net, x = net_and_batch()
    rows = torch.tensor(rows)
    chooses = bare("tv", 1.0, num_pairs=6, choose=lambda y, count: rows, seed=1, **settings)
    chosen = bare("tv", 1.0, seed=1, **settings)
    assert torch.equal(chooses(net, x, net(x)), chosen(net, x[rows], net(x)[rows]))


@pytest.mark.parametrize("settings", [{}, {"radius": 0.0}, {"anchored": False}])
def test_no_rows_cost_nothing(settings):
    net, x = net_and_batch()
    none = bare(
        "tv",
        num_pairs=6,
        choose=lambda y, count: torch.zeros(0, dtype=torch.long),
        output=root_probabilities,
        **settings,
    )
    value = none(net, x, net(x))
    assert value == 0
    (value + net(x).sum()).backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("wrap", [lambda y: {"logits": y}, lambda y: SimpleNamespace(logits=y), lambda y: (y, 0)])
def test_it_sees_what_the_model_returned(wrap):
    net, x = net_and_batch()
    own = bare("tv", 1.0, output=lambda y: 2 * default_output(y), **CLOSEST)
    plain = bare("tv", 4.0, **CLOSEST)
    torch.testing.assert_close(own(lambda z: wrap(net(z)), x, wrap(net(x))), plain(net, x, net(x)))
    assert own.reuses_outputs


@pytest.mark.parametrize("settings", [{}, {"anchored": False}])
def test_under_batchnorm_in_train_mode_the_statistics_are_those_of_the_chosen_points(settings):
    net = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.randn(32, 5)
    out = net(x)  # each forward moves the running statistics
    rows = smallest_margins(out, 6)
    chooses = bare("tv", 1.0, **CLOSEST, **settings)
    chosen = bare("tv", 1.0, **settings)
    values = chooses(net, x, out), chosen(net, x[rows], out[rows])
    assert torch.equal(*values)
    for one, other in zip(*(torch.autograd.grad(v, net.parameters()) for v in values), strict=True):
        torch.testing.assert_close(one, other)


def test_outputs_that_cannot_serve_as_f_of_x_still_choose():
    net = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.randn(32, 5)
    out = net(x)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    penalty = bare("tv", 1.0, **CLOSEST)
    penalty(net, x, out).backward()
    assert penalty.reuses_outputs is False
    assert torch.equal(penalty.pairs.x, x[smallest_margins(out, 6)])
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(p.grad.isfinite().all() for p in net.parameters())


def test_a_chosen_row_that_is_not_finite_does_not_count():
    net, x = net_and_batch()
    penalty = bare("tv", 1.0, num_pairs=6, choose=last_rows)
    penalty(net, x, net(x))
    x[-6] = math.nan
    value = penalty(net, x, net(x))
    pairs = penalty.pairs.map(lambda z: z[1:])
    assert torch.equal(pairs.x, x[-5:])
    q = (net(pairs.x_prime) - net(pairs.x)).norm(dim=1) / pairs.distance(2)
    torch.testing.assert_close(value, q.square().mean())
    with pytest.warns(UserWarning, match="NaN or infinity"):
        penalty.warn_of_data()
    assert penalty.estimate.isfinite()


def test_without_outputs_it_has_nothing_to_look_at():
    net, x = net_and_batch()
    penalty = bare("tv", **CLOSEST)
    with pytest.raises(ValueError, match=r"`outputs`, model\(x\).*`choose`.*but got None"):
        penalty(net, x)
    with torch.no_grad(), pytest.raises(ValueError, match="`outputs`"):
        penalty(net, x)
    assert penalty.pairs is None


def test_at_weight_zero_it_needs_no_outputs():
    net, x = net_and_batch()
    penalty = bare("tv", 0.0, **CLOSEST)
    assert torch.equal(penalty(net, x), torch.zeros(()))
    with pytest.raises(TypeError, match="`x`"):
        penalty(net, x.long())


@pytest.mark.parametrize("rows", [8, 64])
@pytest.mark.parametrize("settings", [{}, {"radius": 0.0}, {"anchored": False}])
def test_outputs_of_another_batch_are_refused_before_they_choose(rows, settings):
    net, x = net_and_batch()
    penalty = bare("tv", **CLOSEST, **settings)
    with pytest.raises(ValueError, match=r"`outputs`.*16 rows"):
        penalty(net, x, net(torch.randn(rows, 5)))
    assert penalty.pairs is None


@pytest.mark.parametrize(
    "rows", [torch.tensor([True] * 16), torch.zeros(6), torch.zeros(6).short(), torch.zeros(2, 3).long(), [0, 1], None]
)
def test_what_is_no_list_of_row_numbers_is_refused(rows):
    net, x = net_and_batch()
    penalty = bare("tv", num_pairs=6, choose=lambda y, count: rows)
    with pytest.raises(TypeError, match=r"`choose`.*row numbers.*but got.*nonzero"):
        penalty(net, x, net(x))
    assert penalty.pairs is None


@pytest.mark.parametrize("rows", [[16], [0, 99], [-17], [3, -17, 16]])
@pytest.mark.parametrize("settings", [{}, {"anchored": False}])
def test_rows_that_the_batch_does_not_have_are_refused_in_the_first_call(rows, settings):
    net, x = net_and_batch()
    penalty = bare("tv", num_pairs=6, choose=lambda y, count: torch.tensor(rows), **settings)
    with pytest.raises(ValueError, match=r"`choose`.*batch of 16 rows, but got.*to "):
        penalty(net, x, net(x))
    assert penalty.pairs is None


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"choose": "closest", "num_pairs": 6}, TypeError, "`choose`.*but got 'closest'"),
        ({"choose": smallest_margins}, ValueError, "`num_pairs`.*`choose`.*but got None"),
        ({"choose": smallest_margins, "method": "max"}, ValueError, "`choose`.*`method`='max'.*'tv'"),
    ],
)
def test_settings_that_do_not_go_together(settings, error, words):
    with pytest.raises(error, match=words):
        bare(**settings)


def test_it_sees_the_model_as_the_loop_has_it_and_what_it_notes_stays():
    class Chooses(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.rows, self.modes = nn.Linear(6, 3), None, []

        def forward(self, x):
            return self.linear(x)

        def choose(self, outputs, n):
            self.modes.append(self.training)
            self.rows = outputs.detach().abs().amax(1).topk(n).indices
            return self.rows

    net, x = Chooses(), torch.randn(8, 6)
    penalty = bare("tv", 1.0, num_pairs=4, choose=net.choose)
    for calls in range(1, 4):
        out = net(x)
        penalty(net, x, out)
        assert net.modes == [True] * calls
        assert len(net.rows) == 4
