"""Bad input: a clear error that names the argument, before anything changes."""

import math
import warnings

import pytest
import torch
from torch import nn
from zoo import METHODS, FunctionalDropout, gradients, mlp, penalty_of, same, traces

from torchlipreg import DiscrepancyWeight, LipschitzPenalty, RadiusDecay

NAN, INF = math.nan, math.inf
LOCAL = ("tv", "ptv")
PERSISTENT = ("max", "sum")

ARGUMENTS = [
    *(("method", bad) for bad in ("TV", "mean", "", None, 3)),
    *(("ascent", bad) for bad in ("lbfgs", "", 3, True)),
    *((norm, bad) for norm in ("input_norm", "output_norm") for bad in (0, 3, -1, -INF, NAN, "2", "inf", None, True)),
    *(("exponent", bad) for bad in (0, 3, 1.5, "2", None, True)),
    *(
        (name, bad)
        for name in ("weight", "radius", "noise", "momentum")
        for bad in (-1e-9, INF, -INF, NAN, "1", 1j, True)
    ),
    *((name, None) for name in ("weight", "noise", "momentum")),
    *((name, bad) for name in ("num_pairs", "ascent_steps", "interval") for bad in (0, -1, 1.5, "3", True, NAN)),
    *((name, None) for name in ("ascent_steps", "interval")),
    ("momentum", 1.0),
    *(("bounds", bad) for bad in ((1, 0), (0, 0), (NAN, 1), (0, NAN), (0,), (0, 1, 2), 1.0, "01x", ("a", "b"))),
    *(("anchored", bad) for bad in (None, 1, "yes")),
    *((name, bad) for name in ("output", "choose") for bad in ("logits", 0)),
    *(("seed", bad) for bad in (-1, 1.5, None, "0", True)),
    *(("normalization", bad) for bad in (((), 1), (0, ()), ((), ()), ((0, 0), (1, 1, 1)), (0, 0), ("a", 1), 0.5, "ab")),
]


@pytest.mark.parametrize(("name", "bad"), ARGUMENTS)
def test_arguments_of_the_constructor(name, bad):
    with pytest.raises((ValueError, TypeError), match=f"`{name}`") as error:
        LipschitzPenalty(**{name: bad})
    assert "but got" in str(error.value)


@pytest.mark.parametrize(
    ("name", "bad", "kind"),
    [
        *(("bounds", bad, TypeError) for bad in (("a", "b"), (0, "1"), (False, True), (0, None), "01", 1.0, (0, 1, 2))),
        *(("bounds", bad, ValueError) for bad in ((1, 0), (NAN, 1), (0, NAN))),
        *(("seed", bad, TypeError) for bad in ("a", 1.5, None, True)),
        ("seed", -1, ValueError),
    ],
)
def test_a_wrong_type_is_no_wrong_value(name, bad, kind):
    with pytest.raises(kind, match=f"`{name}`"):
        LipschitzPenalty(**{name: bad})


def test_an_integer_may_be_numpys():
    numpy = pytest.importorskip("numpy")
    assert LipschitzPenalty(seed=numpy.int64(3), num_pairs=numpy.int64(3)).settings.seed == 3


@pytest.mark.parametrize("bad", [0, -0.1, INF, NAN, "0.1", True])
def test_step_size(bad):
    with pytest.raises((ValueError, TypeError), match="`step_size`"):
        LipschitzPenalty(ascent="sgd", step_size=bad)


@pytest.mark.parametrize("settings", [{}, {"method": "ptv"}, {"method": "max", "ascent": "power"}])
def test_power_steps_have_no_size(settings):
    with pytest.raises(ValueError, match=r"`step_size`.*`ascent`='sgd'"):
        LipschitzPenalty(**settings, step_size=0.1)


@pytest.mark.parametrize("name", ["weight", "radius"])
@pytest.mark.parametrize("bad", [-1.0, INF, NAN, None, "1"])
def test_attributes_that_are_set_later(name, bad):
    penalty = LipschitzPenalty(weight=0.5)
    with pytest.raises((ValueError, TypeError), match=f"`{name}`"):
        setattr(penalty, name, bad)
    assert (penalty.weight, penalty.radius) == (0.5, 8 / 255)


@pytest.mark.parametrize(
    ("build", "named"),
    [
        *((lambda p, b=b: DiscrepancyWeight(p, b, 0.1), "target") for b in (-0.1, 1.1, NAN, "1")),
        *((lambda p, b=b: DiscrepancyWeight(p, 0.9, b), "increment") for b in (-0.1, INF, None)),
        *((lambda p, b=b: DiscrepancyWeight(p, 0.9, 0.1, max_weight=b), "max_weight") for b in (-1, NAN)),
        *((lambda p, b=b: DiscrepancyWeight(p, 0.9, 0.1, warmup=True).step(b), "accuracy") for b in (-0.1, 90.0, NAN)),
        *((lambda p, b=b: RadiusDecay(p, b), "gamma") for b in (0, 1.1, NAN, "1")),
        *((lambda p, b=b: RadiusDecay(p, min_radius=b), "min_radius") for b in (-1, INF)),
        (lambda p: RadiusDecay(LipschitzPenalty("max")), "radius"),
    ],
)
def test_arguments_of_schedules(build, named):
    with pytest.raises((ValueError, TypeError), match=f"`{named}`"):
        build(LipschitzPenalty())


# ---- the call ------------------------------------------------------------------------------------------------------


def refused(penalty, model, x, named, kind, outputs=None, watched=None):
    """Hold a call to the promise: an error with the name in it, and nothing changed."""
    net = watched or mlp()
    before, state, pairs = traces(net), penalty.state_dict(), penalty.pairs
    with pytest.raises(kind, match=named):
        penalty(model, x, outputs)
    assert same(traces(net), before)
    assert same(penalty.state_dict(), state)
    assert penalty.pairs is pairs


def nonfinite(value):
    x = torch.randn(8, 6)
    x[2, 3] = value
    return x


def nested(layout):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*nested tensors.*prototype")
        return torch.nested.nested_tensor([torch.ones(2, 6), torch.ones(3, 6)], layout=layout)


INPUTS = {
    "integers": (torch.ones(8, 6, dtype=torch.long), TypeError, "`x`.*embeddings"),
    "booleans": (torch.ones(8, 6, dtype=torch.bool), TypeError, "`x`.*embeddings"),
    "complex": (torch.ones(8, 6, dtype=torch.complex64), TypeError, "`x`.*floating"),
    "a list": ([[1.0] * 6] * 8, TypeError, "`x`.*tensor, but got list"),
    "nothing": (None, TypeError, "`x`"),
    "sparse": (torch.ones(8, 6).to_sparse(), TypeError, r"`x`.*dense.*sparse_coo.*to_dense\(\)"),
    "jagged": (nested(torch.jagged), TypeError, r"`x`.*nested.*to_padded_tensor"),
    "nested": (nested(torch.strided), TypeError, r"`x`.*nested.*to_padded_tensor"),
    "without values": (torch.ones(8, 6, device="meta"), TypeError, "`x`.*values.*meta"),
    "0-dim": (torch.tensor(1.0), ValueError, r"`x`.*\(N, \*\)"),
    "no rows": (torch.ones(0, 6), ValueError, r"`x`.*\(0, 6\)"),
    "empty rows": (torch.ones(8, 0), ValueError, r"`x`.*\(8, 0\)"),
}


@pytest.mark.parametrize("case", INPUTS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("first", [True, False])
def test_inputs(case, method, first):
    x, kind, named = INPUTS[case]
    net, penalty = mlp(), penalty_of(method)
    if not first:
        penalty(net, torch.randn(8, 6))
    refused(penalty, net, x, named, kind, watched=net)


@pytest.mark.parametrize("bad", ["no", None, 0, torch.tensor(True)])
@pytest.mark.parametrize("weight", [1.0, 0.0])
def test_update_is_true_or_false(bad, weight):
    net, penalty = mlp(), penalty_of("max")
    penalty(net, torch.randn(8, 6))
    penalty.weight, state = weight, penalty.state_dict()
    with pytest.raises(TypeError, match=r"`update`.*True or False, but got"):
        penalty(net, torch.randn(8, 6), update=bad)
    assert same(penalty.state_dict(), state | {"weight": weight})


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_a_first_batch_that_is_not_finite(method, value):
    net, penalty, x = mlp(), penalty_of(method), torch.randn(8, 6)
    refused(penalty, net, nonfinite(value), "`x`.*finite", ValueError, watched=net)
    assert torch.equal(penalty(net, x), penalty_of(method)(net, x))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bounds", [(0, 1), (-0.5, 100), (-100, 0.5)])
def test_a_first_batch_outside_the_bounds(method, bounds):
    net = mlp()
    refused(penalty_of(method, bounds=bounds), net, torch.randn(8, 6), "`bounds`.*`x` spans", ValueError, watched=net)


@pytest.mark.parametrize("method", PERSISTENT)
@pytest.mark.parametrize("shape", [(8, 4), (8, 6, 1), (8,)])
def test_inputs_that_do_not_fit_the_stored_pairs(method, shape):
    net, penalty = mlp(), penalty_of(method)
    penalty(net, torch.randn(8, 6))
    refused(penalty, net, torch.randn(shape), r"`x`.*\(6,\)", ValueError, watched=net)


@pytest.mark.parametrize("method", PERSISTENT)
def test_a_first_batch_too_small_for_pairs_of_data_points(method):
    net, penalty = mlp(), penalty_of(method)
    refused(penalty, net, torch.randn(1, 6), "`x`.*`radius`", ValueError, watched=net)
    assert penalty_of(method, radius=0.1)(net, torch.randn(1, 6)) > 0


OUTPUTS = {
    "a loss": (lambda y: y.mean(), ValueError, "batch axis.*`output=`"),
    "a row less": (lambda y: y[1:], ValueError, "batch axis.*`output=`"),
    "flattened": (lambda y: y.flatten(), ValueError, "batch axis.*`output=`"),
    "classes": (lambda y: y.argmax(1), TypeError, "floating tensor.*`output=`"),
    "nothing": (lambda y: None, TypeError, "tensor, but got NoneType.*`output=`"),
    "an empty tuple": (lambda y: (), TypeError, "tensor, but got tuple.*`output=`"),
    "a string first": (lambda y: ("loss", y), TypeError, "tensor, but got str.*`output=`"),
    "nested": (lambda y: torch.nested.as_nested_tensor([*y], layout=torch.jagged), TypeError, "nested.*`output=`"),
    "detached": (lambda y: y.detach(), ValueError, "carry a gradient.*`model`"),
}


@pytest.mark.parametrize("case", OUTPUTS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("radius", [0.1, 0.0])
@pytest.mark.parametrize("first", [True, False])
def test_outputs_of_the_model(case, method, radius, first):
    wrong, kind, named = OUTPUTS[case]
    net, x, penalty = mlp(), torch.randn(8, 6), penalty_of(method, radius=radius)
    if not first:
        penalty(net, x)
    refused(penalty, lambda z: wrong(net(z)), x, named, kind, watched=net)


@pytest.mark.parametrize("wrong", [lambda y: y[:5], lambda y: y[:, :2], lambda y: y.sum(), lambda y: None])
@pytest.mark.parametrize("method", LOCAL)
@pytest.mark.parametrize("first", [True, False])
def test_outputs_of_the_loop(wrong, method, first):
    net, x, penalty = mlp(), torch.randn(8, 6), penalty_of(method)
    if not first:
        penalty(net, x, net(x))
    y = wrong(net(x))
    refused(penalty, net, x, "output", (ValueError, TypeError), outputs=(y,) if y is None else y, watched=net)


@pytest.mark.parametrize("method", METHODS)
def test_a_penalty_without_gradient_is_told_once(method):
    net, x, penalty = mlp().requires_grad_(False), torch.randn(8, 6), penalty_of(method)
    with pytest.warns(UserWarning, match="no gradient.*`model`"):
        value = penalty(net, x)
    assert value > 0
    assert penalty(net, x) > 0  # and no second warning


@pytest.mark.parametrize("method", METHODS)
def test_a_model_that_ignores_its_input(method):
    weight, x, penalty = torch.ones(3, requires_grad=True), torch.randn(8, 6), penalty_of(method)
    value = penalty(lambda z: weight.expand(len(z), 3), x)
    value.backward()
    assert value == 0
    assert torch.equal(weight.grad, torch.zeros(3))


# ---- batches that are not finite, later on -------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("every_row", [True, False])
@pytest.mark.parametrize("ascent", ["power", "adam"])
@pytest.mark.parametrize("radius", [0.1, 0.0])
def test_a_batch_that_is_not_finite_poisons_nothing(method, value, every_row, ascent, radius):
    net, penalty = mlp(), penalty_of(method, ascent=ascent, radius=radius)
    penalty(net, torch.randn(8, 6))
    pairs = penalty.pairs
    x = torch.full((8, 6), value) if every_row else nonfinite(value)
    penalty_value = penalty(net, x)
    penalty_value.backward()
    assert penalty_value.isfinite()
    assert gradients(net).isfinite().all()
    if method in LOCAL:
        assert all(z.isfinite().all() for z in penalty.pairs)
        torch.testing.assert_close(penalty(net, x, update=False), penalty_value)
    else:
        assert same(penalty.pairs, pairs)
    assert penalty.estimate.isfinite()  # which only tells the number
    with pytest.warns(UserWarning, match="NaN or infinity") as told:
        penalty.state_dict()
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        penalty.warn_of_data()
        penalty(net, torch.randn(8, 6)).backward()
        assert penalty.estimate > 0
    assert gradients(net).isfinite().all()


@pytest.mark.parametrize("method", METHODS)
def test_finite_rows_of_such_a_batch_count_as_ever(method):
    net, x = mlp(), torch.randn(8, 6)
    spoiled = torch.cat([x, torch.full((2, 6), NAN)])
    penalties = [penalty_of(method, radius=0.0, ascent_steps=50) for _ in range(2)]
    for penalty in penalties:
        penalty(net, torch.randn(4, 6))
    values = [penalty(net, batch) for penalty, batch in zip(penalties, (x, spoiled), strict=True)]
    if method in LOCAL:  # the limit after many steps does not depend on the start
        torch.testing.assert_close(*values, rtol=1e-3, atol=0)


@pytest.mark.parametrize("method", LOCAL)
@pytest.mark.parametrize("build", [mlp, FunctionalDropout])
def test_outputs_of_such_a_batch(method, build):
    net, penalty, x = build(), penalty_of(method), torch.randn(8, 6)
    penalty(net, x, net(x))
    value = penalty(net, nonfinite(NAN), net(nonfinite(NAN)))
    assert value.isfinite()
    assert penalty.estimate.isfinite()
    with pytest.warns(UserWarning, match="NaN or infinity"):
        penalty.warn_of_data()
    if not penalty.reuses_outputs:
        value.backward()
        assert gradients(net).isfinite().all()


@pytest.mark.parametrize("method", METHODS)
def test_a_model_that_diverged_does_not_poison_the_pairs(method):
    net, x, penalty = mlp(), torch.randn(8, 6), penalty_of(method)
    penalty(net, x)
    with torch.no_grad():
        kept = net[0].weight.clone()
        net[0].weight.fill_(NAN)
    penalty(net, x)
    assert all(z.isfinite().all() for z in penalty.pairs)
    with torch.no_grad():
        net[0].weight.copy_(kept)
    assert penalty(net, x).isfinite()


@pytest.mark.parametrize(
    ("method", "radius"), [*((m, r) for m in METHODS for r in (0.1, 0.0)), *((m, None) for m in PERSISTENT)]
)
@pytest.mark.parametrize("exponent", [1, 2])
@pytest.mark.parametrize("shift", [0.0, 1e-30])
def test_coincident_points_and_constant_networks(method, exponent, radius, shift):
    net, x = mlp(), torch.ones(8, 6)
    x[::2] += shift
    for weights in (None, 0.0):
        if weights is not None:
            nn.init.constant_(net[0].weight, weights)
        penalty = penalty_of(method, exponent=exponent, radius=radius)
        for _ in range(3):
            net.zero_grad()
            value = penalty(net, x)
            value.backward()
            assert value.isfinite()
            assert gradients(net).isfinite().all()
            assert all(z.isfinite().all() for z in penalty.pairs)


def test_a_forgotten_model_is_named():
    with pytest.raises(TypeError, match=r"`model`.*The order is"):
        LipschitzPenalty()(torch.rand(4, 3), torch.rand(4, 2))


@pytest.mark.parametrize(("wrong", "near"), [("raduis", "radius"), ("wieght", "weight"), ("norm", "input_norm")])
def test_an_unknown_argument_is_answered_with_the_nearest_name(wrong, near):
    with pytest.raises(TypeError, match=rf"Unknown argument `{wrong}`. Did you mean `{near}`"):
        LipschitzPenalty(**{wrong: 1})


def test_an_unknown_attribute_is_refused():
    penalty = LipschitzPenalty()
    with pytest.raises(AttributeError, match="wieght"):
        penalty.wieght = 1
    with pytest.raises(AttributeError):
        penalty.settings = None


@pytest.mark.parametrize("bad", [0.0, -1.0, NAN, INF, "1", True])
def test_scale_has_to_be_a_positive_number(bad):
    with pytest.raises((ValueError, TypeError), match="`scale`"):
        LipschitzPenalty(scale=bad)


class NobodyMakes(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x) * self.gain


class MakesInTrain(NobodyMakes):
    def train(self, mode=True):
        if not mode:
            self.gain = 1.0
        return super().train(mode)


def test_an_attribute_that_a_train_of_its_own_makes():
    with pytest.raises(ValueError, match="What a train"):
        penalty_of("tv")(MakesInTrain(), torch.rand(5, 4))


def test_an_attribute_that_nobody_makes_is_the_models_own_error():
    with pytest.raises(AttributeError, match="gain"):
        penalty_of("tv")(NobodyMakes(), torch.rand(5, 4))


@pytest.mark.parametrize(("bad", "got"), [({1: 2}, "a key of int"), ([torch.zeros(100)], "but got list")])
def test_model_kwargs_are_not_printed(bad, got):
    with pytest.raises(TypeError, match=got) as error:
        penalty_of("tv")(mlp(), torch.rand(5, 4), model_kwargs=bad)
    assert len(str(error.value)) < 150


@pytest.mark.parametrize("method", METHODS)
def test_points_outside_of_what_the_model_is_defined_on_are_told(method):
    torch.manual_seed(0)
    layer, x = nn.Linear(4, 3), torch.rand(16, 4)
    x[:, 0] = 0.0
    with pytest.warns(UserWarning, match=r"give that range as `bounds`"):
        LipschitzPenalty(method, radius=0.03, num_pairs=8)(lambda z: layer(z.sqrt()), x)
    LipschitzPenalty(method, radius=0.03, num_pairs=8, bounds=(0, 1))(lambda z: layer(z.sqrt()), x)


@pytest.mark.parametrize("method", METHODS)
def test_an_infinite_slope_in_the_limit_is_told(method):
    """Bounds, which the advice for pairs names, were given and did not help."""
    torch.manual_seed(0)
    layer, x = nn.Linear(4, 3), torch.rand(16, 4)
    x[:, 0] = 0.0
    with pytest.warns(UserWarning, match=r"it is a derivative, .* Give a larger `radius`"):
        LipschitzPenalty(method, radius=0.0, num_pairs=8, bounds=(0, 1))(lambda z: layer(z.sqrt()), x)


def test_labels_as_outputs_are_not_blamed_on_the_model():
    with pytest.raises(TypeError, match=r"`outputs` to be model\(x\), with 5 rows"):
        penalty_of("tv")(nn.Linear(4, 3), torch.rand(5, 4), torch.arange(5))


class Detector(nn.Module):
    """Losses in train mode, boxes in eval mode, as torchvision's detectors."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return {"boxes": self.layer(x)} if self.training else [{"boxes": row} for row in self.layer(x)]


@pytest.mark.parametrize("output", [None, lambda y: y["boxes"]])
def test_a_model_that_returns_something_else_in_eval_mode_is_named(output):
    with pytest.raises(TypeError, match="in eval mode as a penalty calls it, returned a list: does it"):
        penalty_of("tv", output=output)(Detector(), torch.rand(5, 4))


def test_several_views_are_answered_with_how_to_call():
    with pytest.raises(TypeError, match=r"`x` to be a tensor, but got list.*call once for each"):
        penalty_of("tv")(nn.Linear(4, 3), [torch.rand(5, 4), torch.rand(5, 4)])
