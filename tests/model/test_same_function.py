"""Is f the same function at both points? Modules that run are frozen, randomness is refused, half precision is seen."""

import contextlib
import copy
import functools
import gc
import math
import pickle
import warnings

import oracles
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from zoo import METHODS, Counting, Seen, dropout_net, mlp, penalty_of, same, traces

from torchlipreg import lipschitz_lower_bound, operator_norm
from torchlipreg.inspection.inspector import AGAIN
from torchlipreg.model.internals.switches import PLACES
from torchlipreg.model.parts.search import find_modules

net_of_this_file = dropout_net()


def reaches(owner, depth):
    for _ in range(depth):
        owner = Owner(owner)
    return owner


class Owner:
    def __init__(self, held):
        self.held = held

    def __call__(self, x):
        return self.held(x)


def default_argument(net):
    def f(z, model=net):
        return model(z)

    return f


def unfilled(net):
    def make():
        def f(z):
            return net(z) if flag else late

        flag = True
        return f
        late = 1

    return make()


FOUND = {
    "comprehension": lambda net: lambda z: torch.cat([net(part) for part in z.split(4)]),
    "generator": lambda net: lambda z: torch.cat(tuple(net(part) for part in z.split(4))),
    "map": lambda net: lambda z: torch.cat(list(map(lambda part: net(part), z.split(4)))),
    "default argument": default_argument,
    "an unfilled cell": unfilled,
    "three objects deep": lambda net: reaches(net, 3),
    "dict in a list": lambda net: (lambda nets: lambda z: nets[0]["net"](z))([{"net": net}]),
}


@pytest.mark.parametrize("form", FOUND)
def test_modules_are_found(form):
    net = dropout_net()
    assert net in find_modules(FOUND[form](net))


def test_modules_among_globals_of_nested_code_are_found():
    forms = (
        lambda z: torch.cat([net_of_this_file(part) for part in z.split(8)]),
        lambda z: list(map(lambda part: net_of_this_file(part), [z])),
    )
    assert all(net_of_this_file in find_modules(f) for f in forms)


class Hidden(nn.Module):
    """Its module is neither registered nor found."""

    def __init__(self, net):
        super().__init__()
        object.__setattr__(self, "get", {"net": lambda: net}.get)

    def forward(self, x):
        return self.get("net")()(x)


class Unregistered(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.nets = [net]

    def forward(self, x):
        return self.nets[0](x)


class DeepOwner:
    """Five objects deep: deeper than anybody looks."""

    def __init__(self, net):
        self.inner = reaches(net, 5)

    def __call__(self, x):
        return self.inner(x)


@pytest.mark.parametrize("wrap", [DeepOwner, Hidden, Unregistered])
@pytest.mark.parametrize("method", METHODS)
def test_a_module_that_is_not_found_is_frozen_when_it_runs(wrap, method):
    net, x = dropout_net().double(), torch.randn(8, 6, dtype=torch.float64)
    net(x)
    f, penalty = wrap(net), penalty_of(method)
    before = traces(net)
    for _ in range(3):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*statistics are held constant")  # of a norm that is met late
            penalty(f, x)
        assert same(traces(net), before)
    evaluated = penalty_of(method)
    for _ in range(3):
        evaluated(net.eval(), x)
    torch.testing.assert_close(penalty.estimate, evaluated.estimate, rtol=1e-12, atol=0)


# ---- randomness ----------------------------------------------------------------------------------------------------


class Noisy(nn.Module):
    def __init__(self, draw):
        super().__init__()
        self.first, self.last, self.draw = nn.Linear(6, 8), nn.Linear(8, 3), draw

    def forward(self, x):
        return self.last(self.draw(self.first(x)))


generator = torch.Generator().manual_seed(0)
DRAWS = {
    "noise": lambda h: h + 0.1 * torch.randn_like(h),
    "functional dropout": lambda h: F.dropout(h, 0.5, training=True),
    "gate": lambda h: h * (torch.rand(()) > 0.5),
    "gumbel": lambda h: F.gumbel_softmax(h),
    "own generator": lambda h: h + torch.randn(h.shape, generator=generator),
}


@pytest.mark.parametrize("kind", DRAWS)
@pytest.mark.parametrize("measure", [*METHODS, "lower bound", "operator norm"])
def test_a_random_model_is_refused(kind, measure):
    torch.manual_seed(3)
    net, x = Noisy(DRAWS[kind]).eval(), torch.randn(8, 6)
    if kind == "gate":
        pytest.skip("may give the same twice")
    measures = {"lower bound": lipschitz_lower_bound, "operator norm": operator_norm}
    call = measures.get(measure) or penalty_of(measure)
    before = traces(net)
    with pytest.raises(ValueError, match="two forwards at the same points differ"):
        call(net, x)
    assert same(traces(net), before)


@pytest.mark.parametrize("kind", ["noise", "functional dropout", "gate", "gumbel"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("anchored", [True, False])
def test_on_request_both_points_see_the_same_random_numbers(kind, method, anchored):
    net, x = Noisy(DRAWS[kind]).double(), torch.randn(8, 6, dtype=torch.float64)
    settings = {"anchored": anchored} if method in ("tv", "ptv") else {}
    penalty = penalty_of(method, stochastic="same", **settings)
    estimates = []
    for _ in range(3):
        before = torch.get_rng_state()
        penalty(net, x)
        assert torch.equal(torch.get_rng_state(), before)
        estimates.append(float(penalty.estimate))
    if kind == "noise":  # which cancels: the map without it
        exact = torch.linalg.matrix_norm(net.last.weight @ net.first.weight, 2).item()
        assert max(estimates) <= exact * (1 + 1e-9)
        assert max(estimates) > 0.2 * exact


class PowerIteration(nn.Module):
    """Spectral norm as many repositories have it: in each forward, on a vector that is a parameter."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 6))
        self.u = nn.Parameter(torch.randn(3), requires_grad=False)

    def forward(self, x):
        v = F.normalize(self.weight.data.mT @ self.u.data, dim=0)
        self.u.data = F.normalize(self.weight.data @ v, dim=0)
        return x @ (self.weight / (self.u @ self.weight @ v)).mT


def test_a_model_that_changes_itself_is_not_called_random():
    with pytest.raises(ValueError, match=r"two forwards at the same points differ.*changes itself.*spectral_norm"):
        penalty_of("tv")(PowerIteration(), torch.randn(8, 6))


def test_noise_that_is_scheduled_up_is_noticed_later():
    net, x, penalty = Noisy(lambda h: h + scale * torch.randn_like(h)), torch.randn(8, 6), penalty_of("tv")
    scale = 0.0
    penalty(net, x)
    scale = 0.5
    for _ in range(AGAIN - 1):
        penalty(net, x)
    with pytest.raises(ValueError, match="two forwards"):
        penalty(net, x)


def test_a_model_is_looked_at_once():
    ran = Seen()
    net, x, penalty = Counting(6, 3, ran), torch.randn(8, 6), penalty_of("tv")
    counts = []
    for _ in range(3):
        ran.items.clear()
        penalty(lambda z: net(z), x)  # made anew in each step
        counts.append(len(ran))
    assert counts == [8, 3, 3]


@pytest.mark.parametrize("method", METHODS)
def test_the_last_call_is_repeated_with_its_random_numbers(method):
    """As a closure of L-BFGS or SAM evaluates it again."""
    torch.manual_seed(0)
    linear = nn.Linear(6, 3)
    net, x = lambda z: linear(z + 0.3 * torch.randn_like(z)).tanh(), torch.randn(16, 6)
    penalty = penalty_of(method, stochastic="same")
    for _ in range(3):
        value = penalty(net, x)
        torch.testing.assert_close(penalty(net, x, update=False), value)


def test_another_model_in_the_same_lambda_is_looked_at_too():
    penalty, x = penalty_of("tv"), torch.randn(8, 6)
    call = {"lambda": lambda net: lambda z: net(z), "partial": lambda net: functools.partial(run, net=net)}
    for make in call.values():
        penalty(make(nn.Linear(6, 3)), x)
        with pytest.raises(ValueError, match="two forwards"):
            penalty(make(Noisy(lambda h: h + torch.randn_like(h))), x)
        penalty(make(nn.Linear(6, 3)), x)


def run(z, net):
    return net(z)


def test_a_model_at_the_address_of_a_dead_one_is_looked_at_too():
    penalty, x, refused = penalty_of("tv"), torch.randn(8, 6), 0
    for _ in range(20):
        penalty(nn.Sequential(nn.Linear(6, 3)), x)
        with pytest.raises(ValueError, match="two forwards"):
            penalty(Noisy(lambda h: h + torch.randn_like(h)), x)
        refused += 1
    assert refused == 20
    gc.collect()
    penalty(nn.Linear(6, 3), x)
    assert len(penalty._inspector._seen) <= 2


def test_a_penalty_that_has_seen_a_lambda_can_be_pickled():
    net, x, penalty = nn.Linear(6, 3), torch.randn(8, 6), penalty_of("max")
    penalty(lambda z: net(z), x)
    twin = pickle.loads(pickle.dumps(penalty))
    torch.testing.assert_close(twin(net, x), penalty(net, x))


@pytest.mark.compiler
def test_modules_of_the_output_are_held_beside_a_compiled_model():
    net, head = nn.Linear(6, 8), nn.Sequential(nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))
    x, before = torch.randn(8, 6), copy.deepcopy(head)
    parts = [head[0], head]  # one is found by itself and within the other
    for output in (head, lambda y: parts[1](parts[0](y))):
        exact = penalty_of("tv", output=output)(net, x)
        value = penalty_of("tv", output=output)(torch.compile(net, backend="eager"), x)
        torch.testing.assert_close(value, exact)
        assert all(m.training for m in head.modules())
    assert all(torch.equal(a, b) for a, b in zip(head.buffers(), before.buffers(), strict=True))


# ---- half precision inside ----------------------------------------------------------------------------------------


class Autocast(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))

    @torch.autocast("cpu", dtype=torch.bfloat16)
    def forward(self, x):
        return self.body(x)


@pytest.mark.parametrize("radius", [2.0, 0.1, 0.01, 0.003])
def test_autocast_inside_a_forward_is_seen(radius):
    net, x = Autocast(), torch.rand(32, 64)
    exact = operator_norm(net.body, x).max()
    penalty = penalty_of("tv", radius=radius)
    with pytest.warns(UserWarning, match="bfloat16") if radius < 2 else contextlib.nullcontext():
        penalty(net, x, net(x))
    assert penalty.estimate <= 1.1 * exact
    assert lipschitz_lower_bound(net, x, radius=radius) <= exact * 1.1


# ---- a lower bound is never above the truth ------------------------------------------------------------------------


@pytest.mark.parametrize("norms", [(2, 2), (math.inf, math.inf), (1, 1)])
@pytest.mark.parametrize("offset", [0.0, 1e-8, 1e-4, 1.0, 1e4, 1e8])
@pytest.mark.parametrize("scale", [1e-8, 1e-4, 1.0, 1e4, 1e8])
def test_the_lower_bound_is_never_above_the_truth(offset, scale, norms):
    torch.manual_seed(0)
    linear = nn.Linear(8, 4, bias=False)
    p, q = norms
    exact = oracles.matrix_norm(linear.weight.detach().double(), p, q)
    x = torch.randn(32, 8) * scale
    for f in (lambda z: linear(z) + offset, nn.Sequential(linear)):
        for radius in (None, 0.1 * scale, 1e-3 * scale, 0.0):
            found = lipschitz_lower_bound(f, x, radius=radius, input_norm=p, output_norm=q, steps=5)
            assert found <= exact * (1 + 1e-9)


@pytest.mark.parametrize("offset", [0.0, 1.0, 1e4])
def test_the_lower_bound_of_what_has_no_float64_allows_for_rounding(offset):
    matrix = torch.randn(8, 4)  # a product with float64 is refused
    exact = torch.linalg.matrix_norm(matrix.double(), 2).item()
    for radius in (None, 1.0, 1e-2, 1e-3):
        found = lipschitz_lower_bound(lambda z: z @ matrix + offset, torch.randn(32, 8), radius=radius)
        assert found <= exact
        assert found > 0.5 * exact or offset == 1e4


class RootMeanSquareNorm(nn.Module):
    """As language models have it: in float32, whatever the rest."""

    def forward(self, x):
        h = x.to(torch.float32)
        return (h * torch.rsqrt(h.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


@pytest.mark.parametrize("offset", [0.0, 10.0, 1e3])
@pytest.mark.parametrize("radius", [1e-3, 1e-2, 3e-2])
def test_the_lower_bound_of_float32_inside_of_float64_allows_for_rounding(offset, radius):
    torch.manual_seed(0)
    first, last, x = nn.Linear(4, 4), nn.Linear(4, 2), torch.rand(64, 4)
    norm = RootMeanSquareNorm()
    found = lipschitz_lower_bound(lambda z: last(norm(first(z) + offset)), x, radius=radius)
    a, b, w, v = (p.detach().double() for p in (first.weight, first.bias, last.weight, last.bias))

    def exact(z):
        h = z @ a.mT + b + offset
        return h * torch.rsqrt(h.square().mean(-1, keepdim=True) + 1e-6) @ w.mT + v

    near = torch.rand(5_000, 4, dtype=torch.float64) * 1.2 - 0.1
    jacobians = torch.func.vmap(torch.func.jacrev(exact))(torch.cat([x.double(), near]))
    assert found <= float(torch.linalg.matrix_norm(jacobians, 2).max()) * 1.001


# ---- precision of products -----------------------------------------------------------------------------------------


@pytest.fixture
def rounded_products():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("radius", [0.1, 1e-3])
def test_products_of_float32_are_not_rounded_to_bfloat16(rounded_products, method, radius):
    """On processors that multiply so, quotients of close points were up to seven times too large."""
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 16)), torch.rand(32, 64)
    penalty = penalty_of(method, radius=radius)
    penalty(net, x)
    assert torch.get_float32_matmul_precision() == "medium"
    u, v = (z.double() for z in penalty.pairs)
    net = net.double()
    exact = ((net(v) - net(u)).norm(dim=1) / (v - u).norm(dim=1)).max()
    assert penalty.estimate == pytest.approx(exact.item(), rel=1e-3)


def set_precision(backend, operation, precision):
    torch._C._set_fp32_precision_setter(backend, operation, precision)


def precisions():
    return {place: torch._C._get_fp32_precision_getter(*place) for place in PLACES}


@pytest.fixture
def products_as_found():
    yield
    for place in PLACES:
        set_precision(*place, "none")
    torch.set_float32_matmul_precision("highest")


MIXED = {
    "one operation": [("mkldnn", "conv", "bf16")],
    "a backend": [("mkldnn", "all", "bf16")],
    "all": [("generic", "all", "bf16")],
    "a backend and one of its own": [("mkldnn", "all", "bf16"), ("mkldnn", "conv", "bf16")],
    "all but one": [("generic", "all", "bf16"), ("mkldnn", "matmul", "ieee")],
    "medium, but not of matmul": ["medium", ("mkldnn", "matmul", "ieee"), ("mkldnn", "rnn", "bf16")],
}


@pytest.mark.skipif(not hasattr(torch._C, "_get_fp32_precision_getter"), reason="torch has no such names yet")
@pytest.mark.parametrize("settings", MIXED.values(), ids=MIXED)
def test_nor_by_the_newer_names(products_as_found, settings):
    net, during = mlp(), Seen()
    net.register_forward_pre_hook(lambda m, args: during.append(tuple(precisions().values())))
    for setting in settings:
        torch.set_float32_matmul_precision(setting) if isinstance(setting, str) else set_precision(*setting)
    before = precisions()
    penalty_of("tv")(net, torch.randn(8, 6))
    assert during.items
    assert "bf16" not in {precision for precisions in during.items for precision in precisions}
    assert precisions() == before
    set_precision("generic", "all", "ieee")  # what inherits still does
    set_precision("mkldnn", "all", "none")
    inherit = {place for place in PLACES if precisions()[place] == "ieee"}
    own = {setting[:2] for setting in settings if setting[1] in ("matmul", "conv", "rnn")}
    assert inherit >= set(PLACES) - own


def test_of_a_recurrent_network_too():
    net, x = nn.LSTM(4, 6, num_layers=2, batch_first=True), torch.randn(8, 5, 4)
    f = lambda z: net(z)[0]  # noqa: E731
    exact = float(operator_norm(f, x).max())
    found = lipschitz_lower_bound(f, x, radius=1e-3)
    assert found == pytest.approx(exact, rel=0.02)
    assert all(w is p for w, p in zip(net._flat_weights, net.parameters(), strict=True))


def test_close_singular_values_are_told_apart():
    linear = nn.Linear(100, 100, bias=False)
    linear.weight.data = torch.diag(torch.cat([torch.tensor([1.01]), torch.ones(99)]))
    torch.testing.assert_close(operator_norm(linear, torch.zeros(2, 100)), torch.full((2,), 1.01), rtol=1e-5, atol=0)


def test_under_inference_mode():
    net, x = mlp(), torch.randn(8, 6)
    wanted = operator_norm(net, x), lipschitz_lower_bound(net, x)
    with torch.inference_mode():
        torch.testing.assert_close(operator_norm(net, x), wanted[0])
        assert lipschitz_lower_bound(net, x) == pytest.approx(wanted[1], rel=1e-6)


def test_inputs_in_half_precision():
    net, x = mlp(), torch.randn(8, 6)
    torch.testing.assert_close(operator_norm(net, x.half()), operator_norm(net, x.half().float()))


# ---- refused, or told ---------------------------------------------------------------------------------------------


def test_a_lazy_model_is_refused_before_it_has_parameters():
    with pytest.raises(ValueError, match="call the model once before"):
        penalty_of("tv")(nn.Sequential(nn.LazyLinear(3)), torch.randn(8, 6))


def test_a_model_that_needs_another_dtype_is_told():
    net = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 3).bfloat16())
    with pytest.raises(ValueError, match="Pass a function that"):
        penalty_of("tv")(net, torch.randn(8, 6))


class ByTheBatch(nn.Module):
    def __init__(self, of_other_rows):
        super().__init__()
        self.first, self.of_other_rows, self.last = nn.Linear(6, 5), of_other_rows, nn.Linear(5, 3)

    def forward(self, x):
        h = self.first(x)
        return self.last(torch.tanh(self.of_other_rows(h)))


COUPLED = {
    "BatchNorm without statistics": nn.BatchNorm1d(5, track_running_stats=False),
    "the function, in training always": lambda h: F.batch_norm(h, None, None, training=True),
    "another make": lambda h: (h - h.mean(0)) / h.std(0),
    "attention over the batch": lambda h: (h @ h.T).softmax(1) @ h,
    "the size of the batch's values": lambda h: h / h.norm(),
    "the row before": lambda h: h + torch.cat([0 * h[:1], h[:-1]]),
    "its part of the batch": lambda h: (h.view(-1, 4, 5) - h.view(-1, 4, 5).mean(1, keepdim=True)).reshape(h.shape),
}


@pytest.mark.parametrize("method", ["tv", "max"])
@pytest.mark.parametrize("of_other_rows", COUPLED.values(), ids=COUPLED)
def test_rows_that_depend_on_others_are_told(of_other_rows, method):
    net, x, penalty = ByTheBatch(of_other_rows), torch.randn(8, 6), penalty_of(method)
    with pytest.warns(UserWarning, match="depend on the other rows"):
        penalty(net, x)
    penalty(net, x)  # told once; a second warning would be an error
    with pytest.warns(UserWarning, match="depend on the other rows"):
        operator_norm(net, x, steps=2)


@pytest.mark.parametrize("count", [8, 1])
def test_a_norm_without_statistics_is_told_before_it_shows(count):
    last = nn.Linear(16, 3)
    nn.init.zeros_(last.weight)
    norm = nn.BatchNorm1d(4, track_running_stats=False)
    net = nn.Sequential(nn.Conv1d(3, 4, 3), norm, nn.Flatten(), last)
    with pytest.warns(UserWarning, match="depend on the other rows"):
        penalty_of("tv")(net, torch.randn(count, 3, 6))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_their_own_are_not_told(dtype):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))
    penalty_of("tv", radius=4.0)(net.to(dtype), torch.randn(9, 3, 8, 8))


@pytest.mark.parametrize("method", METHODS)
def test_another_default_device_is_not_looked_on(method):
    net, x, penalty = mlp(), torch.randn(8, 6), penalty_of(method)
    with torch.device("meta"):
        first, second = penalty(net, x, net(x)), penalty(net, x, net(x))
    assert 0 < first.item() < math.inf
    assert 0 < second.item() < math.inf


class Hiding(nn.Module):
    def __init__(self, hide):
        super().__init__()
        self.hide, self.body, self.head = hide, nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.hide(self.body, x).tanh())


def under_no_grad(body, x):
    with torch.no_grad():
        return body(x)


HIDDEN = {
    "no_grad": under_no_grad,
    "detach": lambda body, x: body(x).detach(),
    "the input": lambda body, x: body(x.data),
}


@pytest.mark.parametrize("count", [8, 1])
@pytest.mark.parametrize("hide", HIDDEN.values(), ids=HIDDEN)
def test_an_input_that_gets_no_gradient_is_told(hide, count):
    net, x, penalty = Hiding(hide), torch.randn(count, 6), penalty_of("tv")
    with pytest.warns(UserWarning, match="to its input does not exist"):
        penalty(net, x)
    penalty(net, x)
    for model in (net, net.requires_grad_(False), torch.no_grad()(Noisy(torch.sin))):
        with pytest.raises(ValueError, match="requires_grad_"):
            operator_norm(model, x)
    with torch.no_grad():
        penalty_of("tv")(net, x)  # there is no gradient to look at


def test_a_gradient_that_is_zero_is_told_but_measured():
    rounded = Hiding(lambda body, x: body((8 * x).round() / 8))
    x = torch.randn(8, 6)
    with pytest.warns(UserWarning, match="it rounds, saturates"):
        penalty_of("max")(rounded, x)
    for flat in (rounded, nn.Sequential(nn.Linear(6, 3), nn.Softmax(1))):
        with pytest.warns(UserWarning, match="it rounds, saturates"):
            assert (operator_norm(flat, 1e6 * x) == 0).all()


class Gate(nn.Module):
    """A branch that begins at zero, beside labels."""

    def __init__(self):
        super().__init__()
        self.branch, self.gate, self.of_label = nn.Linear(6, 3), nn.Parameter(torch.zeros(1)), nn.Embedding(4, 3)

    def forward(self, x, label):
        return self.of_label(label) + self.gate * self.branch(x)


def test_labels_that_make_outputs_differ_are_not_taken_for_a_hidden_input():
    penalty_of("tv")(Gate(), torch.randn(8, 6), model_kwargs={"label": torch.arange(8) % 4})


def test_what_is_looked_at_takes_no_gradient_where_there_is_none():
    masked = Masked()
    with torch.inference_mode():
        penalty_of("tv")(masked, torch.randn(8, 6), model_kwargs={"mask": torch.ones(8, 5)})


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x, mask):
        return self.last(self.first(x).tanh() * mask)


def test_a_model_that_refuses_equal_rows_is_told():
    first = nn.Linear(6, 5)

    def process(x):
        h = first(x)
        return torch.linalg.cholesky(torch.exp(-(torch.cdist(h, h) ** 2))) @ h

    with pytest.warns(UserWarning, match="depend on the other rows"):
        penalty_of("tv")(process, torch.randn(8, 6))


class Experts(nn.Module):
    """One is not registered, and runs for some rows only."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.hidden = [nn.Sequential(nn.Dropout(0.9), nn.Linear(6, 3))]

    def forward(self, x):
        h, left = self.first(x), x[:, :1] < 0
        return torch.where(left, self.hidden[0](h), h[:, :3]) if left.any() else h[:, :3]


def test_a_measure_meets_modules_in_each_of_its_forwards():
    x = torch.randn(64, 6)
    x[:, 0] = x[:, 0].abs() + 1
    x[40:, 0] *= -1
    net = Experts()
    exact = operator_norm(evaluated(net), x)
    torch.testing.assert_close(operator_norm(net, x), exact)
    assert lipschitz_lower_bound(net, x, radius=0.01) <= exact.max() * (1 + 1e-5)


def evaluated(net):
    net = copy.deepcopy(net)
    for m in net.hidden:
        m.eval()
    return net.eval()


def test_a_network_that_is_constant_or_normalised_is_not_told_of_its_gradient():
    x = torch.randn(8, 6)
    last = nn.Linear(6, 3)
    nn.init.zeros_(last.weight)
    for net in (nn.Sequential(nn.Linear(6, 6), last), Noisy(F.normalize), Noisy(lambda h: h.softmax(1))):
        penalty_of("tv")(net, x)
