"""The model as a fixed function that leaves no trace."""

import contextlib
import copy
import functools
import gc

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import nn
from zoo import (
    METHODS,
    FunctionalDropout,
    Recurrent,
    Seen,
    StochasticDepth,
    conv_bn,
    dropout_net,
    gradients,
    mlp,
    penalty_of,
    same,
    traces,
)

from torchlipreg import LipschitzPenalty, lipschitz_lower_bound, operator_norm
from torchlipreg.model import switched_off
from torchlipreg.model.fixed import fixed_function
from torchlipreg.model.parts.modules import all_modules

RANDOM = {
    "batchnorm": (conv_bn, (7, 3, 6, 6)),
    "dropout": (dropout_net, (7, 6)),
    "functional dropout": (FunctionalDropout, (7, 6)),
    "stochastic depth": (StochasticDepth, (7, 6)),
    "lstm": (Recurrent, (7, 5, 4)),
    "attention": (lambda: nn.TransformerEncoderLayer(4, 2, 8, dropout=0.5, batch_first=True), (7, 5, 4)),
    "instance norm": (lambda: nn.Sequential(nn.InstanceNorm1d(5, track_running_stats=True), nn.Flatten()), (7, 5, 4)),
}


def as_lambda(net):
    return lambda x: net(x)


def as_helper(net):
    def inner(x):
        return net(x)

    return lambda x: inner(x)


class Trainer:
    def __init__(self, net):
        self.net = net

    def forward(self, x):
        return self.net(x)

    __call__ = forward


CALLABLES = {
    "module": lambda net: net,
    "lambda": as_lambda,
    "helper": as_helper,
    "bound method": lambda net: net.forward,
    "method of an owner": lambda net: Trainer(net).forward,
    "callable object": Trainer,
    "partial": lambda net: functools.partial(torch.func.functional_call, net, dict(net.named_parameters())),
    "list in a closure": lambda net: (lambda nets: lambda x: nets[0](x))([net]),
    "parallel": nn.DataParallel,
}


# ---- any order of terms -------------------------------------------------------------------------------------------


def terms_gradient(order, method, wrap, together, **settings):
    """Gradient of a sum of terms, by one backward at the end or by one after each term."""
    torch.manual_seed(0)
    net = conv_bn().double().train()
    x, y = torch.randn(8, 3, 6, 6, dtype=torch.float64), torch.randint(5, (8,))
    model, penalty = wrap(net), penalty_of(method, **settings)
    total, terms = 0, 0
    for term in order.split("+"):
        if term == "pen":
            value, terms = penalty(model, x, update=terms == 0), terms + 1
        else:
            value = F.cross_entropy(net(x), y)
        if together:
            total = total + value
        else:
            value.backward()
    if together:
        total.backward()
    return gradients(net)


@pytest.mark.parametrize("order", ["pen+task", "task+pen", "task+pen+task", "pen+task+pen"])
@pytest.mark.parametrize(("method", "settings"), [*((m, {}) for m in METHODS), ("tv", {"radius": 0.0})])
def test_any_order_of_terms_gives_the_sum_of_their_gradients(order, method, settings):
    together, apart = (terms_gradient(order, method, CALLABLES["module"], t, **settings) for t in (True, False))
    torch.testing.assert_close(together, apart, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("form", CALLABLES)
def test_any_order_through_any_callable(form):
    together = terms_gradient("pen+task", "tv", CALLABLES[form], True)
    apart = terms_gradient("pen+task", "tv", CALLABLES["module"], False)
    torch.testing.assert_close(together, apart, rtol=1e-6, atol=1e-9)


# ---- no trace ------------------------------------------------------------------------------------------------------


class Failing(nn.Module):
    """A net that raises in its n-th forward from now."""

    def __init__(self, net):
        super().__init__()
        self.net, self.ran, self.breaks_at = net, Seen(), None

    def forward(self, x):
        self.ran.append(1)
        if self.breaks_at is not None and len(self.ran) > self.breaks_at:
            raise RuntimeError("the model broke")
        return self.net(x)


def half_frozen(net):
    """Freeze some modules and parameters, as a fine-tuning user does, and leave gradients behind."""
    modules = list(net.modules())
    modules[1].training = False
    modules[-1].training = False
    for p in list(net.parameters())[:2]:
        p.requires_grad_(False)
    for p in list(net.parameters())[2:4]:
        p.grad = torch.randn_like(p)
    return net


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("breaks_at", [0, 1, None], ids=["first forward", "second forward", "never"])
@pytest.mark.parametrize("kind", ["batchnorm", "dropout", "lstm", "attention"])
def test_nothing_in_the_model_changes(kind, method, breaks_at):
    build, shape = RANDOM[kind]
    net = half_frozen(Failing(build()))
    x, penalty = torch.randn(shape), penalty_of(method)
    x_before = x.clone()
    penalty(net, x)
    remembered, before = penalty.state_dict(), traces(net)
    if breaks_at is None:
        penalty(net, x)
    else:
        net.breaks_at = len(net.ran) + breaks_at
        with pytest.raises(RuntimeError, match="the model broke"):
            penalty(net, x)
        assert same(penalty.state_dict(), remembered)
    assert same(traces(net), before)
    assert torch.equal(x, x_before)
    assert not x.requires_grad


def test_traces_would_see_a_change():
    net = conv_bn()
    before = traces(net)
    assert same(traces(net), before)
    net(torch.randn(4, 3, 6, 6))
    assert not same(traces(net), before)


# ---- a function of each row alone ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", RANDOM)
def test_one_value_for_one_input(kind):
    build, shape = RANDOM[kind]
    net, u = build().double().train(), torch.randn(shape, dtype=torch.float64)
    net(u)  # running statistics that are not the initial ones
    with fixed_function(net) as f:
        y = f(u)
        torch.testing.assert_close(f(u), y, rtol=1e-14, atol=1e-14)
        torch.testing.assert_close(f(u[:3]), y[:3], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(f(torch.cat([u[:3], 100 * u[3:]]))[:3], y[:3], rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(y, copy.deepcopy(net).eval()(u), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("on_cudnn", [False, True])
def test_recurrent_layers_are_in_train_mode_only_where_cudnn_needs_it(on_cudnn, monkeypatch):
    if on_cudnn:
        monkeypatch.setattr(switched_off, "is_on_cudnn", lambda m: type(m) is nn.LSTM)
    seen = Seen()
    net = Recurrent()
    net.lstm.register_forward_pre_hook(lambda m, _: seen.append((m.training, m.dropout)))
    penalty_of("tv")(net, torch.randn(3, 5, 4))
    assert set(seen.items) == {(True, 0.0) if on_cudnn else (False, 0.5)}
    assert net.lstm.dropout == 0.5
    assert net.lstm.training


def test_an_overridden_train_method_is_never_called():
    class Merging(nn.Linear):
        def train(self, mode=True):
            raise AssertionError("merged its weights")

    penalty_of("tv")(nn.Sequential(Merging(6, 3)), torch.randn(4, 6))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("radius", [0.1, 0.0])
def test_a_first_layer_in_place(method, radius):
    last = nn.Linear(6, 3)
    x = torch.randn(8, 6)
    in_place, plain = (nn.Sequential(nn.ReLU(inplace=i), last) for i in (True, False))
    results = []
    for net in (in_place, plain):
        before, penalty = x.clone(), penalty_of(method, radius=radius)
        penalty(net, x)
        value = penalty(net, x)
        results.append((value, penalty.pairs))
        assert torch.equal(x, before)
        assert (penalty.pairs.x_prime < 0).any()
    assert same(*results)


@pytest.mark.parametrize("method", METHODS)
def test_a_function_in_place(method):
    x = torch.randn(8, 6)
    weight = torch.randn(3, 6, requires_grad=True)
    values = [penalty_of(method)(f, x) for f in (lambda z: z.mul_(2) @ weight.T, lambda z: 2 * z @ weight.T)]
    torch.testing.assert_close(*values)


# ---- checkpoints ---------------------------------------------------------------------------------------------------


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.first, self.last, self.reentrant = nn.Linear(6, 8), nn.Linear(8, 3), reentrant
        self.middle = nn.Sequential(nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 8))

    def forward(self, x):
        hidden = self.first(x)
        if self.reentrant is None:
            return self.last(self.middle(hidden))
        return self.last(torch.utils.checkpoint.checkpoint(self.middle, hidden, use_reentrant=self.reentrant))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("radius", [0.1, 0.0])
def test_a_checkpoint_recomputes_the_fixed_function(method, radius):
    if radius == 0 and hasattr(torch.utils.checkpoint, "_NoopSaveInputs"):
        pytest.skip("checkpoints of this torch have no forward-mode derivative")
    net, x = Checkpointed(reentrant=None).double(), torch.randn(8, 6, dtype=torch.float64)
    results = []
    for reentrant in (None, False):
        net_now = copy.deepcopy(net)
        net_now.reentrant = reentrant
        value = penalty_of(method, radius=radius)(net_now, x)
        net_now(x)  # moves the running statistics between forward and recomputation
        before = {name: b.clone() for name, b in net_now.named_buffers()}
        value.backward()
        assert same(dict(net_now.named_buffers()), before)
        assert net_now.middle[1].training
        results.append((value.detach(), gradients(net_now)))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", ["max", "tv"])
def test_a_reentrant_checkpoint_names_the_way_out(method):
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        penalty_of(method)(Checkpointed(reentrant=True), torch.randn(8, 6))


def test_checkpoints_of_timm():
    timm = pytest.importorskip("timm")
    net = timm.create_model("test_vit", num_classes=3, img_size=32, drop_path_rate=0.5).double()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    results = []
    for enable in (False, True):
        net.zero_grad()
        net.set_grad_checkpointing(enable)
        penalty_of("tv")(net, x).backward()
        results.append(gradients(net))
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)


# ---- without gradients ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("radius", [0.1, 0.0])
def test_without_gradients_the_value_comes_and_nothing_moves(method, context, radius):
    net, x = mlp(), torch.randn(8, 6)
    used, fresh = penalty_of(method, radius=radius), penalty_of(method, radius=radius)
    with context():
        first = used(net, x)
    assert first.isfinite()
    assert first > 0
    assert used.pairs is None
    assert same(used(net, x), fresh(net, x))  # as if the validation step had not been
    known = used.state_dict()
    with context():
        value = used(net, x)
    torch.testing.assert_close(value, fresh(net, x, update=False))
    known["estimate"] = used.estimate.clone()  # that of the last call
    assert same(used.state_dict(), known)
    assert same(used(net, x), fresh(net, x))


# ---- precision -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_it_computes_in_float32(method, dtype):
    net, x = mlp(), torch.randn(8, 6)
    exact, mixed = penalty_of(method, radius=1e-3), penalty_of(method, radius=1e-3)
    value = exact(net, x)
    with torch.autocast("cpu", dtype):
        assert same(mixed(net, x, net(x)), value)
        assert net(x).dtype == dtype
    assert same(mixed.estimate, exact.estimate)


def test_under_accelerate_it_computes_in_float32():
    accelerate = pytest.importorskip("accelerate")
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)  # a test before this may have left one
    try:
        accelerator = accelerate.Accelerator(mixed_precision="bf16", cpu=True)
        net, x = mlp(), torch.randn(8, 6)
        exact, mixed = penalty_of("tv", radius=1e-3), penalty_of("tv", radius=1e-3)
        exact(net, x).backward()
        wanted = gradients(net)
        net.zero_grad()
        seen = Seen()
        net[0].register_forward_hook(lambda m, args, y: seen.append(y.dtype))
        net = accelerator.prepare(net)
        mixed(net, x, net(x)).backward()
        assert seen.items[0] == torch.bfloat16
        assert set(seen.items[1:]) == {torch.float32}
        torch.testing.assert_close(mixed.estimate, exact.estimate, rtol=0.05, atol=0)
        torch.testing.assert_close(gradients(net), wanted, rtol=1e-5, atol=1e-7)
        net(x)
        assert seen[-1] == torch.bfloat16
    finally:
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("method", METHODS)
def test_a_model_in_bfloat16(method, recwarn):
    net, x = mlp().bfloat16(), torch.randn(8, 6).bfloat16()
    penalty = penalty_of(method)
    for _ in range(3):
        value = penalty(net, x, net(x))
        value.backward()
        assert value.isfinite()
        assert value.dtype == torch.float32
        assert gradients(net).isfinite().all()
    told = [str(w.message) for w in recwarn]
    assert len(told) == (method in ("tv", "ptv"))  # radius 0.1 is less than bfloat16 resolves
    assert all("the limit ε → 0" in message for message in told)


def test_a_scripted_model_is_refused():
    with pytest.warns() if torch.__version__ >= "2.10" else contextlib.nullcontext():
        scripted = torch.jit.script(nn.Sequential(nn.Linear(6, 3), nn.Dropout(0.5)))
    with pytest.raises(TypeError, match="scripted"):
        penalty_of("tv")(scripted, torch.randn(8, 6))


def test_cached_attention_biases_leave_no_graph_behind():
    timm = pytest.importorskip("timm")
    net, x = timm.create_model("levit_128s", num_classes=3), torch.randn(2, 3, 224, 224)
    penalty = penalty_of("tv", num_pairs=1)
    for _ in range(2):
        penalty(net, x).backward()
    assert not any(m.__dict__.get("attention_bias_cache") for m in net.modules())
    copy.deepcopy(net)


def test_a_dropped_penalty_frees_its_memory_at_once():
    net, x, penalty = conv_bn(), torch.randn(7, 3, 6, 6), penalty_of("tv")
    gc.collect()
    gc.disable()  # a cycle of references would keep the clones of all buffers until the collector runs
    try:
        for _ in range(3):
            penalty(net, x)
        assert not [o for o in gc.get_objects() if type(o).__name__ == "_FrozenState"]
    finally:
        gc.enable()


def test_warnings_point_at_the_user():
    with pytest.warns(UserWarning, match="no gradient") as caught:
        penalty_of("tv")(lambda z: z**2, torch.rand(4, 3))
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match="`radius`") as caught:
        penalty_of("tv", radius=1e-9)(nn.Linear(3, 2), torch.rand(4, 3))
    assert caught[0].filename == __file__


def test_all_modules_are_those_of_torch_in_its_order_each_once():
    shared = nn.Linear(2, 2)
    net = nn.Sequential(nn.Sequential(shared, nn.ReLU()), shared, nn.ModuleDict({"none": nn.Identity()}))
    net.register_module("empty", None)
    net[0].register_module("parent", net)  # a cycle
    assert all_modules(net) == list(net.modules())
    assert all_modules(lambda x: net(x) + shared(x)) == list(net.modules())


# One path at both points


class Padded(nn.Module):
    """A transformer encoder of torch on padded sequences, whose fused path is another function of padding."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(8, 3)

    def forward(self, x):
        padding = torch.arange(x.shape[1]).expand(len(x), -1) >= 4
        return self.head(self.encoder(x, src_key_padding_mask=padding).mean(1))


@pytest.mark.filterwarnings("ignore:.*nested tensors:UserWarning")
@pytest.mark.parametrize("radius", [0.01, 0.1])
def test_a_lower_bound_of_a_padded_transformer_is_below_the_truth(radius):
    net, x = Padded(), torch.randn(16, 6, 8)
    exact = [torch.autograd.functional.jacobian(lambda z: net.eval()(z[None])[0], xi).reshape(3, -1) for xi in x]
    largest = torch.linalg.matrix_norm(torch.stack(exact), 2).max().item()
    enabled = torch.backends.mha.get_fastpath_enabled()
    assert lipschitz_lower_bound(net, x, radius=radius) < 1.05 * largest
    assert operator_norm(net, x).max().item() == pytest.approx(largest, rel=1e-3)
    assert torch.backends.mha.get_fastpath_enabled() == enabled


class DroppingLSTM(nn.LSTM):
    """An LSTM with a dropout of its own, by the training flag."""

    def forward(self, x, hx=None):
        return super().forward(F.dropout(x, 0.5, self.training), hx)


@pytest.mark.parametrize("training", [True, False])
def test_a_subclass_of_an_rnn_is_in_eval_mode(training):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = DroppingLSTM(4, 6, batch_first=True), nn.Linear(6, 3)

        def forward(self, x):
            return self.head(self.rnn(x)[0][:, -1])

    net, x = Net().train(training), torch.randn(8, 5, 4)
    penalty, before = penalty_of("tv"), torch.get_rng_state()
    value = penalty(net, x)
    assert torch.get_rng_state().equal(before)
    assert net.rnn.training == training
    net.eval()
    pairs = penalty.pairs
    q = (net(pairs.x_prime) - net(pairs.x)).norm(dim=1) / (pairs.x_prime - pairs.x).flatten(1).norm(dim=1)
    torch.testing.assert_close(value, q.square().mean())


class Conditioned(nn.Module):
    """Its weights are made by another network before the forward, once in a step, and are held in a buffer."""

    def __init__(self):
        super().__init__()
        self.maker, self.head = nn.Linear(2, 18), nn.Linear(3, 3)
        self.register_buffer("made", None, persistent=False)

    def condition(self, z):
        self.made = self.maker(z).view(3, 6)

    def forward(self, x):
        return self.head(torch.tanh(x @ self.made.T))


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_a_buffer_keeps_its_graph(method, given):
    """As it was, the gradient ended there; with `outputs`, f(x) alone pulled."""
    torch.manual_seed(0)
    net, x, penalty = Conditioned().double(), torch.rand(8, 6, dtype=torch.float64), penalty_of(method)
    net.condition(torch.ones(2, dtype=torch.float64))
    value = penalty(net, x, net(x) if given else None)
    parameters = list(net.parameters())
    found = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
    made = net.made
    del net._buffers["made"]
    net.made = made  # a plain attribute
    again = penalty(net, x, update=False)
    assert again == value.detach()
    expected = torch.autograd.grad(again, parameters, allow_unused=True)
    assert expected[0].abs().max() > 1e-3 * expected[2].abs().max()
    for ours, theirs in zip(found[:3], expected[:3], strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_buffer_that_is_trained_where_it_is_gets_its_gradient():
    net = nn.Linear(3, 2).double()
    weight = net._parameters.pop("weight")
    net.register_buffer("weight", weight.detach().clone().requires_grad_())
    penalty, x = LipschitzPenalty("tv", 1.0, radius=0.1, input_norm=2, scale=1), torch.rand(8, 3).double()
    penalty(net, x, net(x)).backward()
    v = F.normalize(penalty.pairs.x_prime - penalty.pairs.x)
    expected = 2 * net.weight.detach() @ (v.T @ v) / len(v)
    torch.testing.assert_close(net.weight.grad, expected)
