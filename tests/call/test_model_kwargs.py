"""What else a model takes comes along with the rows in use: against a penalty on those rows alone."""

import contextlib
import copy

import pytest
import torch
from torch import nn
from zoo import METHODS, bare, gradients, penalty_of

from torchlipreg import LipschitzPenalty

PERSISTENT, LOCAL = METHODS[:2], METHODS[2:]
NUMBERS = {"weight": 1.0, "ascent_steps": 2}


class Masked(nn.Module):
    """A tagger whose mask decides which positions count, and whose temperature is one for all."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x, mask=None, temperature=1.0):
        h = self.first(x).tanh() * mask.unsqueeze(-1)
        return self.last(h.sum(1) / mask.sum(1, keepdim=True)) / temperature


def batch(n=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 5, 4, generator=generator, dtype=torch.float64)
    mask = (torch.rand(n, 5, generator=generator) < 0.6).double()
    mask[:, 0] = 1
    return x, mask


def model():
    torch.manual_seed(0)
    return Masked().double()


class Folded(nn.Module):
    """The same network with the mask in its input: position features, then the mask as one more that never moves."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x[..., :-1], mask=x[..., -1].detach())


@pytest.mark.parametrize("method", LOCAL)
@pytest.mark.parametrize("radius", [0.1, 0.0])
@pytest.mark.parametrize("num_pairs", [None, 3])
def test_rows_come_along(method, radius, num_pairs):
    net, (x, mask) = model(), batch()
    penalty = bare(method, radius=radius, num_pairs=num_pairs, **NUMBERS)
    value = penalty(net, x, model_kwargs={"mask": mask, "temperature": 2.0})
    pairs = penalty.pairs
    rows = [int((x == z).flatten(1).all(1).nonzero()) for z in pairs.x] if num_pairs else list(range(len(x)))
    f = lambda z: net(z, mask=mask[rows], temperature=2.0)  # noqa: E731
    if radius:
        q = (f(pairs.x_prime) - f(pairs.x)).norm(dim=1) / (pairs.x_prime - pairs.x).flatten(1).norm(dim=1)
    else:
        _, change = torch.func.jvp(f, (pairs.x,), (pairs.x_prime - pairs.x,))
        q = change.norm(dim=1)
    torch.testing.assert_close(value, q.square().mean())


@pytest.mark.parametrize("method", METHODS)
def test_a_call_again_sees_the_same(method):
    net, (x, mask) = model(), batch()
    penalty = bare(method, **NUMBERS)
    value = penalty(net, x, model_kwargs={"mask": mask})
    again = penalty(net, x, model_kwargs={"mask": mask}, update=False)
    torch.testing.assert_close(again, value)


@pytest.mark.parametrize("method", METHODS)
def test_a_call_again_does_not_see_what_the_loop_has_written_since(method):
    net, (x, mask) = model(), batch()
    penalty = bare(method, **NUMBERS)
    value = penalty(net, x, model_kwargs={"mask": mask})
    x.mul_(2), mask[:, 1:].neg_().add_(1)  # the next batch, in the same memory
    torch.testing.assert_close(penalty(net, x, model_kwargs={"mask": mask}, update=False), value)


def test_persistent_pairs_keep_theirs():
    net, (x, mask) = model(), batch()
    penalty = bare("sum", num_pairs=6, radius=0.1, **NUMBERS)
    penalty(net, x, model_kwargs={"mask": mask})
    first = penalty._state.last.side["mask"].clone()
    other_x, other_mask = batch(seed=1)
    value = penalty(net, other_x, model_kwargs={"mask": other_mask})
    assert torch.equal(penalty._state.last.side["mask"], first)  # no pair was stuck
    pairs = penalty.pairs
    q = (net(pairs.x_prime, mask=first) - net(pairs.x, mask=first)).norm(dim=1)
    torch.testing.assert_close(value, (q / (pairs.x_prime - pairs.x).flatten(1).norm(dim=1)).square().mean())


@pytest.mark.parametrize("method", PERSISTENT)
def test_the_state_holds_them(method, tmp_path):
    net, (x, mask) = model(), batch()
    penalty = bare(method, num_pairs=6, **NUMBERS)
    penalty(net, x, model_kwargs={"mask": mask})
    torch.save(penalty.state_dict(), tmp_path / "state.pt")
    resumed = bare(method, num_pairs=6, **NUMBERS)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    twin = copy.deepcopy(penalty)
    others = batch(seed=1)
    values = [p(net, others[0], model_kwargs={"mask": others[1]}) for p in (penalty, resumed, twin)]
    assert values[0].equal(values[1])
    assert values[0].equal(values[2])


@pytest.mark.parametrize("method", PERSISTENT)
def test_stuck_pairs_are_drawn_with_the_masks_of_their_points(method):
    net, (x, mask) = model(), batch()
    penalty = bare(method, num_pairs=6, radius=0.1, **NUMBERS)
    penalty(net, x, model_kwargs={"mask": mask})
    penalty._state.stuck = torch.tensor([True, False] * 3)
    other_x, other_mask = batch(seed=1)
    other_mask[:] = torch.tensor([1.0, 1, 0, 0, 1])
    penalty(net, other_x, model_kwargs={"mask": other_mask})
    assert (penalty._state.last.side["mask"][::2] == other_mask[0]).all()
    assert not (penalty._state.last.side["mask"][1::2] == other_mask[0]).all()


@pytest.mark.parametrize("num_pairs", [None, 3])
def test_outputs_of_the_loop_serve(num_pairs):
    net, (x, mask) = model(), batch()
    given, computed = (bare("tv", num_pairs=num_pairs, **NUMBERS) for _ in range(2))
    kwargs = {"mask": mask}
    grads = []
    for penalty, outputs in ((given, net(x, mask=mask)), (computed, None)):
        net.zero_grad()
        penalty(net, x, outputs, model_kwargs=kwargs).backward()
        grads.append(gradients(net).clone())
    torch.testing.assert_close(*grads)
    assert given.reuses_outputs


def test_other_names_or_shapes_are_refused_with_persistent_pairs():
    net, (x, mask) = model(), batch()
    penalty = bare("max", num_pairs=6, **NUMBERS)
    penalty(net, x, model_kwargs={"mask": mask})
    with pytest.raises(ValueError, match=r"`model_kwargs`.*'mask': \(5,\).*but got \{\}"):
        penalty(net, x)


@pytest.mark.parametrize("method", ["max", "sum"])
def test_a_constant_that_happens_to_be_as_long_as_a_later_batch(method):
    net, penalty = nn.Linear(3, 2).double(), bare(method, num_pairs=2)
    constant = torch.ones(5, dtype=torch.float64)

    def f(z, constant):
        return net(z) * constant.sum()

    for count in (8, 5, 8):
        penalty(f, batch(count)[0][..., :3], model_kwargs={"constant": constant})


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_a_sparse_adjacency_is_a_constant(layout):
    net, x = nn.Linear(3, 2).double(), torch.randn(8, 3, dtype=torch.float64)
    adjacency = (torch.rand(8, 8, dtype=torch.float64) > 0.5).double()
    penalties = bare("tv"), bare("tv")
    with pytest.warns(UserWarning, match="other rows"):  # its neighbours
        dense = penalties[0](lambda z: adjacency @ net(z), x)
    with pytest.warns(UserWarning, match="other rows"):
        sparse = penalties[1](lambda z, adj: adj @ net(z), x, model_kwargs={"adj": adjacency.to_sparse(layout=layout)})
    torch.testing.assert_close(sparse, dense)


def test_a_mask_of_another_batch_size_is_named():
    net, (x, mask) = model(), batch()
    with pytest.raises(ValueError, match=r"`model_kwargs`.*each of the 8 points.*'mask': 5"):
        bare("tv")(net, x, model_kwargs={"mask": mask[:5]})


# With 4 pairs of a batch of 8 both points together are as many as its rows.
CLOSED_OVER = [
    *({"num_pairs": 3}, {"num_pairs": 1}, {"anchored": False}, {"anchored": False, "num_pairs": 4}),
    *({"method": method, "num_pairs": count} for method in ("max", "sum") for count in (3, 4, 8)),
    *({"method": "max", "radius": radius, "num_pairs": 4} for radius in (0.1, 0)),
]


@pytest.mark.parametrize("settings", CLOSED_OVER, ids=str)
def test_a_closure_over_the_whole_batch_is_named(settings):
    net, (x, mask) = model(), batch()
    with pytest.raises(ValueError, match=r"points of a batch of 8: .*closes over.*`model_kwargs`"):
        bare(**settings)(lambda z: net(z, mask=mask), x)


def test_other_errors_of_the_model_stay_as_they_are():
    def fails(z):
        raise RuntimeError("no such luck")

    with pytest.raises(RuntimeError, match=r"^no such luck$"):
        bare("tv", num_pairs=2)(fails, torch.rand(8, 3))


@pytest.mark.parametrize("wrong", [[1], "mask", {1: torch.ones(3)}])
@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_what_is_no_dict_is_refused(wrong, weight):
    with pytest.raises(TypeError, match="`model_kwargs` to be a dict"):
        bare("tv", weight)(model(), batch()[0], model_kwargs=wrong)


def test_choose_takes_the_masks_of_its_rows():
    net, (x, mask) = model(), batch()
    rows = torch.tensor([6, 1])
    chooses = bare("tv", num_pairs=2, choose=lambda y, count: rows, **NUMBERS)
    out = net(x, mask=mask)
    value = chooses(net, x, out, model_kwargs={"mask": mask})
    pairs = chooses.pairs
    q = (net(pairs.x_prime, mask=mask[rows]) - net(pairs.x, mask=mask[rows])).norm(dim=1)
    torch.testing.assert_close(value, (q / (pairs.x_prime - pairs.x).flatten(1).norm(dim=1)).square().mean())


class Recurrent(nn.Module):
    """Takes a hidden state of the whole batch, whose rows are not on its first axis."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.GRU(5, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x, h0):
        return self.head(self.body(x, h0)[0][:, -1])


@pytest.mark.parametrize("given", ["model_kwargs", "closure"])
def test_inputs_of_a_whole_batch_serve_in_every_call(given, monkeypatch):
    """Where f is only asked for points in the loop's rows, so are the looks now and then."""
    monkeypatch.setattr("torchlipreg.inspection.inspector.AGAIN", 4)
    net, penalty = Recurrent(), LipschitzPenalty("tv", 0.05, radius=0.1)
    for _ in range(9):
        x, h0 = torch.randn(40, 7, 5), torch.randn(1, 40, 8)
        model, more = (net, {"h0": h0}) if given == "model_kwargs" else (lambda z, h0=h0: net(z, h0), {})
        for update in (True, False):
            out = net(x, h0)
            (out.square().mean() + penalty(model, x, out, update=update, model_kwargs=more)).backward()
    assert penalty.share is not None


@pytest.mark.parametrize("count", [None, 2])
def test_a_mask_of_the_whole_batch_in_a_layer_that_asserts(count):
    """torch's attention checks its masks by assertions."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    x, mask = torch.randn(6, 3, 8), torch.zeros(6, 3, dtype=torch.bool)
    mask[2, 2] = True
    penalty = bare("tv", num_pairs=count)
    expected = contextlib.nullcontext() if count is None else pytest.raises(ValueError, match=r"`model_kwargs`")
    with expected:
        penalty(lambda z: layer(z, src_key_padding_mask=mask), x)


class Conditioned(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.of_condition, self.last = nn.Linear(6, 8), nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x, condition=None):
        return self.last((self.first(x) + self.of_condition(condition)).tanh())


@pytest.mark.parametrize("rows", [None, 5])
@pytest.mark.parametrize("method", ["tv", "ptv"])
def test_what_makes_a_condition_gets_no_gradient_whether_outputs_are_given_or_not(method, rows):
    """As f(x) the loop's outputs pulled at it, while x′ was seen with constants: another gradient than either."""
    torch.manual_seed(0)
    net, maker, x, text = Conditioned(), nn.Linear(2, 4), torch.randn(8, 6), torch.randn(8, 2)
    found = []
    for given in (False, True):
        net.zero_grad()
        condition = maker(text)
        out = net(x, condition)
        penalty = penalty_of(method, num_pairs=rows)
        penalty(net, x, out if given else None, model_kwargs={"condition": condition}).backward()
        assert maker.weight.grad is None
        assert not (given and penalty.reuses_outputs)
        found.append(gradients(net))
    torch.testing.assert_close(*found)
    out = net(x, condition.detach())  # and where nothing carries a gradient they serve
    penalty_of(method)(net, x, out, model_kwargs={"condition": condition.detach()}).backward()


def test_pairs_are_seen_again_beside_rows_of_another_number():
    torch.manual_seed(0)
    net, x, penalty = Conditioned(), torch.randn(8, 6), penalty_of("tv")
    value = penalty(net, x, model_kwargs={"condition": torch.ones(8, 4)})
    again = penalty(net, x, update=False, model_kwargs={"condition": torch.ones(5, 4)})
    torch.testing.assert_close(again, value)
