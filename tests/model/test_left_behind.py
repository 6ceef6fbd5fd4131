"""What a forward leaves behind is put back, and each forward starts from the same."""

import collections
import copy
import dataclasses
import functools
import threading
import types

import pytest
import torch
import torch.utils.checkpoint
from torch import nn
from torch.func import functional_call
from zoo import METHODS, gradients, mlp, penalty_of, same, traces

from torchlipreg import lipschitz_lower_bound, operator_norm
from torchlipreg.model.fixed import fixed_function
from torchlipreg.model.internals.switches import Switch
from torchlipreg.model.traces.buffers import LARGE, PrivateBuffers
from torchlipreg.model.traces.kept import Kept

SETTINGS = [*((method, {}) for method in METHODS), ("tv", {"radius": 0.0})]


class MixtureOfExperts(nn.Module):
    """Keeps a loss of its own for the training loop."""

    def __init__(self):
        super().__init__()
        self.gate, self.experts = nn.Linear(6, 4), nn.ModuleList(nn.Linear(6, 3) for _ in range(4))
        self.balance, self.history, self.counts = None, [], {"forwards": 0, "of rows": {"sizes": []}}

    def forward(self, x):
        gate = self.gate(x).softmax(-1)
        self.balance = 4 * (gate.mean(0) ** 2).sum()
        self.history.append(self.balance)
        self.counts["forwards"] += 1
        self.counts["of rows"]["sizes"].append(len(x))
        return sum(gate[:, i : i + 1] * expert(x) for i, expert in enumerate(self.experts))


class Stateful(nn.Module):
    """Carries its hidden state from batch to batch, as an attribute and in a buffer."""

    def __init__(self):
        super().__init__()
        self.cell, self.last, self.hidden = nn.GRUCell(6, 8), nn.Linear(8, 3), torch.zeros(8, dtype=torch.float64)
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x):
        h = self.cell(x, self.hidden.expand(len(x), 8) + 0.1 * self.steps)
        self.hidden = h.mean(0).detach()
        self.steps += 1
        return self.last(h)


class SharedBuffer(nn.Module):
    """Two modules with one buffer: the first writes what the second reads."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 5), nn.Linear(5, 3)
        self.register_buffer("mean", torch.zeros(6, dtype=torch.float64))
        self.second.register_buffer("of_inputs", self.mean)

    def forward(self, x):
        self.mean.add_(1.0)
        return self.second(self.first(x)) * self.second.of_inputs.mean()


class Table(nn.Module):
    """Holds a large table of lists, lists in a tuple, and a dict that is made in its own way."""

    def __init__(self, table):
        super().__init__()
        self.linear, self.table, self.seen = nn.Linear(6, 3), table, {"a": ([], []), "b": Sized(3)}

    def forward(self, x):
        self.seen["a"][1].append(len(x))
        self.seen["b"]["rows"] = len(x)
        return self.linear(x)


class Sized(dict):
    def __init__(self, size, /):
        super().__init__(size=size)


def test_nested_containers_are_noted_once_and_not_without_end():
    neighbours = [[] for _ in range(300)]
    for i, node in enumerate(neighbours):
        node.extend(neighbours[(i * k) % 300] for k in (3, 7, 11, 13, 17))
    net, kept = Table(neighbours), Kept()
    kept.note(net)
    assert len(kept.containers) <= 300 + 10  # each once, of 300 · 5³ ways to come to one
    rows = [[0] * 1000 for _ in range(1000)]
    kept = Kept()
    kept.note(Table(rows))
    assert sum(len(before) for _, before in kept.containers) < 20_000
    penalty_of("tv")(net, torch.randn(8, 6))
    assert net.seen == {"a": ([], []), "b": {"size": 3}}


@dataclasses.dataclass
class Routing:
    """What a router tells the training loop."""

    loss: torch.Tensor | None = None
    terms: list = dataclasses.field(default_factory=list)
    sum: torch.Tensor = dataclasses.field(default_factory=lambda: torch.zeros(3))


class Ledger:
    """What somebody wrote without dataclasses."""

    def __init__(self):
        self.loss, self.terms, self.sum = None, [], torch.zeros(3)


class InPlace(nn.Module):
    """Keeps its books in an object, in tensors of a dict and of a list, and in a long deque."""

    def __init__(self, routing):
        super().__init__()
        self.linear, self.routing, self.load = nn.Linear(6, 3), routing, {"of experts": torch.zeros(3)}
        self.mean, self.norms = [torch.zeros(3)], collections.deque(range(1_195), maxlen=1_200)

    def forward(self, x):
        y = self.linear(x) + self.mean[0].to(x.dtype)
        self.routing.loss = (y.mean(0) ** 2).sum()
        self.routing.terms.append(self.routing.loss)
        self.routing.sum += y.detach().sum(0)
        self.load["of experts"] += y.detach().softmax(-1).sum(0)
        self.mean[0].copy_(y.detach().mean(0))
        self.norms.extend(y.detach().norm(dim=1).tolist())
        return y

    def books(self):
        tensors = self.load["of experts"].clone(), self.mean[0].clone(), self.routing.sum.clone()
        return self.routing.loss, list(self.routing.terms), list(self.norms), tensors


class Slotted:
    __slots__ = ("__weakref__", "loss", "sum", "terms", "unset")

    def __init__(self):
        self.loss, self.terms, self.sum = None, [], torch.zeros(3)


def simple_namespace():
    return types.SimpleNamespace(loss=None, terms=[], sum=torch.zeros(3))


@pytest.mark.parametrize("radius", [0.1, 0.0])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("routing", [Routing, Ledger, Slotted, simple_namespace])
def test_books_that_are_kept_elsewhere_than_on_the_module_are_put_back(routing, method, radius):
    net, x, penalty = InPlace(routing()), torch.randn(8, 6), penalty_of(method, radius=radius)
    mean, load, total = net.mean[0], net.load["of experts"], net.routing.sum
    for _ in range(3):
        out = net(x)
        before = net.books()
        value = penalty(net, x, out)
        after = net.books()
        assert before[0] is after[0]
        assert all(a is b for a, b in zip(before[1], after[1], strict=True))
        assert before[2] == after[2]
        assert all(map(torch.equal, before[3], after[3]))
        (out.sum() + value + net.routing.loss).backward()
        net.routing.terms.clear()
    assert net.mean[0] is mean
    assert net.load["of experts"] is load
    assert net.routing.sum is total


def test_clones_in_double_are_shared_as_the_buffers_are():
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    first.register_buffer("mean", torch.zeros(3))
    second.register_buffer("of_inputs", first.mean)
    private = PrivateBuffers(double=True)
    assert private.of(first)["mean"] is private.of(second)["of_inputs"]
    assert private.of(first)["mean"].dtype == torch.float64


def test_modules_with_one_buffer_see_what_the_others_write():
    net, x = SharedBuffer().double(), torch.randn(8, 6, dtype=torch.float64)
    net.second.register_buffer("of_inputs", net.mean)  # double() has made two of it
    with torch.no_grad():
        wanted = copy.deepcopy(net)(x)
    with fixed_function(net) as f:
        for _ in range(2):
            torch.testing.assert_close(f(x), wanted)
    assert net.second.of_inputs is net.mean
    assert (net.mean == 0).all()


@pytest.mark.parametrize(("method", "settings"), SETTINGS)
@pytest.mark.parametrize("make", [MixtureOfExperts, Stateful])
def test_attributes_containers_and_buffers_are_put_back(make, method, settings):
    net, x = make().double(), torch.randn(8, 6, dtype=torch.float64)
    out = net(x)
    for _ in range(2):
        before, attributes, trace = {**vars(net)}, repr(vars(net)), traces(net)
        penalty_of(method, **settings)(net, x, out)
        assert all(vars(net)[name] is value for name, value in before.items())
        assert repr(vars(net)) == attributes
        assert same(traces(net), trace)


@pytest.mark.parametrize("radius", [0.1, 0.0])
def test_the_loss_that_a_model_keeps_is_that_of_the_training_forward(radius):
    net, x = MixtureOfExperts().double(), torch.randn(8, 6, dtype=torch.float64)
    out = net(x)
    wanted = torch.autograd.grad(net.balance, net.gate.weight, retain_graph=True)[0]
    penalty_of("tv", radius=radius)(net, x, out)
    torch.testing.assert_close(torch.autograd.grad(net.balance, net.gate.weight)[0], wanted, rtol=0, atol=0)


class Reset(nn.Module):
    """Keeps a plain tensor, and takes it away in its forward."""

    def __init__(self, how):
        super().__init__()
        self.linear, self.how, self.cache, self.caches = nn.Linear(6, 3), how, torch.zeros(3), [torch.zeros(3)]

    def forward(self, x):
        if self.how == "none":
            self.cache = None
        elif self.how == "deleted":
            self.__dict__.pop("cache", None)
        elif self.caches:
            self.caches.pop()
        return self.linear(x)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("how", ["none", "deleted", "popped"])
def test_a_plain_tensor_that_a_forward_takes_away_is_put_back(how, method):
    net, x, penalty = Reset(how), torch.randn(8, 6), penalty_of(method)
    for _ in range(2):
        cache, caches = net.cache, [*net.caches]
        penalty(net, x)
        assert net.cache is cache
        assert len(net.caches) == 1
        assert net.caches[0] is caches[0]
    assert lipschitz_lower_bound(net, x, radius=0.1) > 0


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # torch's, as in the loop's own backward
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["backward", "backward_pre", "global forward", "global backward"])
def test_what_other_hooks_collect_in_a_call_is_put_back(kind, method):
    net, x, collected = mlp(), torch.randn(8, 6), []

    def collect(m, *args):
        collected.append(m)

    register = {
        "backward": net[2].register_full_backward_hook,
        "backward_pre": net[2].register_full_backward_pre_hook,
        "global forward": torch.nn.modules.module.register_module_forward_hook,
        "global backward": torch.nn.modules.module.register_module_full_backward_hook,
    }[kind]
    handle = register(collect)
    try:
        penalty = penalty_of(method)
        for _ in range(9):
            out = net(x)
            before = len(collected)
            penalty(net, x, out)
            assert len(collected) == before
    finally:
        handle.remove()


@pytest.mark.parametrize("method", METHODS)
def test_each_forward_of_a_model_that_carries_a_state_starts_from_the_same(method):
    net, x = Stateful().double(), torch.randn(8, 6, dtype=torch.float64)
    net(x)
    penalty = penalty_of(method)
    penalty(net, x)
    hidden, steps = net.hidden, net.steps.clone()

    def at_rest(z):
        return net.last(net.cell(z, hidden.expand(len(z), 8) + 0.1 * steps))

    u, v = penalty.pairs
    exact = (at_rest(v) - at_rest(u)).norm(dim=1) / (v - u).norm(dim=1)
    torch.testing.assert_close(penalty.estimate, exact.max().detach(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("radius", [0.1, 0.0])
@pytest.mark.parametrize("collect", ["list", "dict", "method", "counter"])
def test_what_hooks_collect_is_put_back(collect, radius):
    net, x = mlp(), torch.randn(8, 6)
    features, count = [], 0

    class Collector:
        def __init__(self):
            self.features = {}

        def note(self, m, args, y):
            self.features[m] = y

    def counting(m, args, y):
        nonlocal count
        count += 1

    by_name, collector = {}, Collector()
    hooks = {
        "list": lambda m, args, y: features.append(y),
        "dict": lambda m, args, y: by_name.__setitem__("tanh", y),
        "method": collector.note,
        "counter": counting,
    }
    net[1].register_forward_hook(hooks[collect])
    out = net(x)
    before = [*features], {**by_name}, {**collector.features}, count
    assert any(before)
    penalty_of("tv", radius=radius)(net, x, out)
    for now, then in zip(([*features], {**by_name}, {**collector.features}, count), before, strict=True):
        assert now is then or len(now) == len(then)
        if isinstance(then, dict):
            assert all(now[key] is then[key] for key in then)


def with_batchnorm():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)).double().train()
    with torch.no_grad():
        for _ in range(20):
            net(torch.randn(64, 6, dtype=torch.float64) * 3 + 2)
    return net


FUNCTIONAL = {
    "dict made once": lambda net: functools.partial(functional_call, net, dict(net.named_parameters())),
    "dict made in each forward": lambda net: lambda z: functional_call(net, dict(net.named_parameters()), (z,)),
    "buffers too": lambda net: (
        lambda z: functional_call(net, {**dict(net.named_parameters()), **dict(net.named_buffers())}, (z,))
    ),
    "a module around it": lambda net: Around(net),
}


class Around(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net, self.own = net, dict(net.named_parameters())

    def forward(self, x):
        return functional_call(self.net, self.own, (x,))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("form", FUNCTIONAL)
@pytest.mark.parametrize("method", ["tv", "max"])
def test_functional_call_with_batchnorm_is_exact(form, training, method):
    x = torch.randn(16, 6, dtype=torch.float64) * 3 + 2
    results = []
    for call in (FUNCTIONAL[form], lambda net: net):
        net = with_batchnorm().train(training)
        owned, before = list(net.parameters()), traces(net)
        value = penalty_of(method)(call(net), x)
        assert all(p is q for p, q in zip(net.parameters(), owned, strict=True))
        assert same(traces(net), before)
        value.backward()
        results.append((value.detach(), gradients(net)))
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-12)


def test_functional_call_with_other_parameters_leaves_the_module_alone():
    net, x = with_batchnorm(), torch.randn(16, 6, dtype=torch.float64)
    other = {name: (2 * p.detach() + 1).requires_grad_() for name, p in net.named_parameters()}
    owned, before = list(net.parameters()), traces(net)
    penalty = penalty_of("tv")
    penalty(lambda z: functional_call(net, other, (z,)), x).backward()
    assert all(p is q for p, q in zip(net.parameters(), owned, strict=True))
    assert same(traces(net), before)
    u, v = penalty.pairs
    f = functools.partial(functional_call, net.eval(), other)
    torch.testing.assert_close(penalty.estimate, ((f(v) - f(u)).norm(dim=1) / (v - u).norm(dim=1)).max().detach())
    assert other["0.weight"].grad is not None


@pytest.mark.parametrize("kind", ["not written", "written in training", "written in every forward"])
def test_large_buffers_are_cloned_only_where_somebody_writes_them(kind):
    class Queue(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(6, 3)
            self.register_buffer("queue", torch.zeros(LARGE))

        def forward(self, x):
            if kind == "written in every forward" or (kind == "written in training" and self.training):
                self.queue[0] += 1
            return self.last(x)

    net, x, penalty = Queue(), torch.randn(8, 6), penalty_of("tv")
    cloned = []
    for _ in range(4):
        out = net(x)
        own, before = net.queue, net.queue.clone()
        penalty(net, x, out).backward()
        assert torch.equal(net.queue, before)
        with fixed_function(net) as f:
            cloned.append(f.state.buffers[net]["queue"] is not own)
    assert cloned[-1] == (kind != "not written")


class Keeps(nn.Module):
    """Fills a cache in its first forward."""

    def __init__(self):
        super().__init__()
        self.last, self.cache = nn.Linear(6, 3), None

    def forward(self, x):
        if self.cache is None:
            self.cache = x.new_ones(6) * 2
        return self.last(x * self.cache)


@pytest.mark.parametrize(
    "call", [lambda f, x: operator_norm(f, x), lambda f, x: penalty_of("tv", radius=0.0)(f, x).backward()]
)
def test_no_dead_tensor_of_a_derivative_is_left_in_a_cache(call):
    net, x = Keeps(), torch.randn(8, 6)
    call(net, x)
    assert net.cache is None
    net(x).sum().backward()
    assert net.cache.sum().item() == 12


def test_a_switch_is_thrown_for_whoever_holds_it():
    """A second thread came in while the first was still at it, and ran without."""
    value, entered, goes_on, seen = ["before"], threading.Event(), threading.Event(), []

    def write(new):
        entered.set()
        goes_on.wait(5)
        value[0] = new

    switch = Switch(lambda: value[0], write, "thrown")

    def hold():
        with switch.held():
            seen.append(value[0])

    threads = [threading.Thread(target=hold) for _ in range(2)]
    threads[0].start()
    entered.wait(5)
    threads[1].start()
    threads[1].join(0.2)
    goes_on.set()
    [thread.join() for thread in threads]
    assert seen == ["thrown", "thrown"]
    assert value == ["before"]


def test_threads_with_a_model_each_leave_torch_as_it_was():
    before = torch.utils.checkpoint._checkpoint_hook, torch.backends.mha.get_fastpath_enabled()
    failed = []

    def train(seed):
        try:
            net, penalty = with_batchnorm(), penalty_of("tv")
            for _ in range(20):
                x = torch.randn(16, 6, dtype=torch.float64)
                (net(x).square().mean() + penalty(net, x)).backward()
            operator_norm(net, x)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=train, args=(seed,)) for seed in range(3)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert failed == []
    assert (torch.utils.checkpoint._checkpoint_hook, torch.backends.mha.get_fastpath_enabled()) == before


def test_a_penalty_inside_of_another_ones_model():
    inner, net, x = penalty_of("tv", seed=1), with_batchnorm(), torch.randn(8, 6, dtype=torch.float64)

    class Smoothed(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, z):
            y = self.net(z)
            inner(self.net, z.detach())
            return y

    before = traces(net)
    value = penalty_of("tv")(Smoothed(), x)
    assert same(traces(net), before)
    torch.testing.assert_close(value, penalty_of("tv")(net, x))


def test_the_lower_bound_leaves_random_numbers_alone():
    class Draws(nn.Linear):
        def forward(self, x):
            torch.rand(3)
            return super().forward(x)

    net, x = Draws(6, 3), torch.randn(8, 6)
    before = torch.get_rng_state()
    lipschitz_lower_bound(net, x)
    operator_norm(net, x)
    penalty = penalty_of("tv")
    for _ in range(2):
        penalty(net, x)
    assert torch.equal(torch.get_rng_state(), before)


class Quantised(nn.Module):
    def __init__(self):
        super().__init__()
        self.quant, self.dequant = torch.ao.quantization.QuantStub(), torch.ao.quantization.DeQuantStub()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x):
        return self.dequant(self.body(self.quant(x)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize(("method", "options"), SETTINGS[:-1])
def test_observers_of_quantisation_aware_training_are_held(method, options):
    """They would fit their ranges to the penalty's points, in eval mode too."""
    torch.manual_seed(0)
    net = Quantised().train()
    net.qconfig = torch.ao.quantization.get_default_qat_qconfig("fbgemm")
    torch.ao.quantization.prepare_qat(net, inplace=True)
    for _ in range(20):
        net(torch.rand(32, 6))
    x = 3 * torch.rand(16, 6)  # beyond the ranges
    before, penalty = traces(net), penalty_of(method, **options)
    value = penalty(net, x)
    assert same(traces(net), before)
    fixed = copy.deepcopy(net).eval().apply(torch.ao.quantization.disable_observer)
    pairs = penalty.pairs
    moved = (fixed(pairs.x_prime) - fixed(pairs.x)).norm(dim=1)
    q = moved / (pairs.x_prime - pairs.x).norm(dim=1, p=penalty.settings.input_norm)
    torch.testing.assert_close(penalty.estimate, q.amax().detach())
    assert value.requires_grad


class Held:
    """Counts the bytes that graphs hold until backward."""

    bytes = 0

    def __init__(self, t):
        self.t, self.size = t, t.numel() * t.element_size()
        Held.bytes += self.size

    def __del__(self):
        Held.bytes -= self.size


def let_recompute(net):
    getattr(net, "activation_checkpointing_enable", net.gradient_checkpointing_enable)()  # another name since 5.0


def test_checkpoints_of_transformers_spare_memory_and_change_nothing():
    """Their layers recompute in train mode only, and the penalty sees them in eval mode."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=6, num_attention_heads=2, intermediate_size=64, image_size=16, patch_size=4
    )
    net, x, found = transformers.ViTForImageClassification(config).train(), torch.randn(4, 3, 16, 16), {}
    for recomputes in (False, True):
        if recomputes:
            let_recompute(net)
        penalty = penalty_of("tv")
        penalty(net, x)  # which looks at the model
        with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.t):
            value = penalty(net, x)
            found[recomputes] = Held.bytes
        net.zero_grad()
        value.backward()
        found[recomputes] = found[recomputes], gradients(net)
        del value
    assert found[True][0] < 0.6 * found[False][0]
    torch.testing.assert_close(found[True][1], found[False][1])


def t5(transformers):
    sizes = {"vocab_size": 20, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    tokens = {"decoder_start_token_id": 0, "pad_token_id": 1}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes, **tokens))


def mamba(transformers):
    sizes = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, "pad_token_id": 1}
    return transformers.MambaForCausalLM(transformers.MambaConfig(**sizes))


@pytest.mark.parametrize("build", [t5, mamba])
def test_checkpoints_of_layers_that_fill_a_cache_in_eval_mode(build):
    """As theirs do that decode: a layer that recomputes would have met its own keys."""
    transformers, found = pytest.importorskip("transformers"), []
    torch.manual_seed(0)
    net, ids = build(transformers).train(), torch.arange(2, 14).view(3, 4)
    x, labels = net.get_input_embeddings()(ids).detach(), {"labels": ids} if net.config.is_encoder_decoder else {}
    for recomputes in (False, True):
        if recomputes:
            let_recompute(net)
        net.zero_grad()
        penalty_of("tv")(lambda z, **kwargs: net(inputs_embeds=z, **kwargs), x, model_kwargs=labels).backward()
        found.append(gradients(net))
    assert found[0].any()
    torch.testing.assert_close(found[1], found[0])
