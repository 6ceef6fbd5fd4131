"""A search among random networks and options: the penalty against a plain transcription in eval mode, no trace left.

Some seconds in the suite; ``pytest tests/test_search.py --hypothesis-profile=hour -m ""`` searches for an hour.
"""

import copy
import math
import warnings

import pytest
import torch
from torch import nn
from zoo import gradients, penalty_of, same, traces

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

QUIET = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}
settings.register_profile("suite", max_examples=60, **QUIET)
settings.register_profile("hour", max_examples=20_000, **{**QUIET, "derandomize": False})
settings.load_profile("suite")

WIDTH = 6


class Residual(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return x + 0.5 * self.inner(x)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.shared = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return self.shared(torch.tanh(self.shared(x)))


class Writes(nn.Module):
    """Writes a buffer, a plain tensor, an attribute and a list in each forward."""

    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.plain, self.seen, self.last = torch.zeros(2, dtype=torch.float64), [], None

    def forward(self, x):
        self.count += 1
        self.plain += 1
        self.last = x
        self.seen.append(x)
        return x * (1 + 0.01 * self.plain[0] + 0.01 * self.count)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(2, WIDTH, num_layers=2, dropout=0.5, batch_first=True)

    def forward(self, x):
        return self.rnn(x.view(len(x), WIDTH // 2, 2))[0][:, -1]


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(2, 1, 4, dropout=0.5, batch_first=True)

    def forward(self, x):
        return self.layer(x.view(len(x), WIDTH // 2, 2)).flatten(1)


LAYERS = {
    "linear": lambda: nn.Linear(WIDTH, WIDTH),
    "tanh": nn.Tanh,
    "softplus": nn.Softplus,
    "in place": lambda: nn.ELU(inplace=True),
    "dropout": lambda: nn.Dropout(0.5),
    "batch norm": lambda: nn.BatchNorm1d(WIDTH),
    "layer norm": lambda: nn.LayerNorm(WIDTH),
    "group norm": lambda: nn.GroupNorm(2, WIDTH),
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH)),
    "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(WIDTH, WIDTH)),
    "shared": Twice,
    "writes": Writes,
    "recurrent": Recurrent,
    "attention": Attention,
}
NETWORKS = st.lists(st.tuples(st.sampled_from(sorted(LAYERS)), st.booleans()), min_size=1, max_size=5)
OPTIONS = st.fixed_dictionaries(
    {
        "input_norm": st.sampled_from([1, 2, math.inf]),
        "output_norm": st.sampled_from([1, 2, math.inf]),
        "exponent": st.sampled_from([1, 2]),
        "ascent": st.sampled_from(["power", "sgd", "nesterov", "adam"]),
        "ascent_steps": st.integers(1, 3),
    }
)


def build(layers):
    torch.manual_seed(0)
    parts = []
    for name, is_residual in layers:
        layer = LAYERS[name]()
        parts.append(Residual(layer) if is_residual and name != "in place" else layer)
    net = nn.Sequential(nn.Linear(WIDTH, WIDTH), *parts, nn.Linear(WIDTH, 3)).double()
    with torch.no_grad():
        for _ in range(3):
            net(torch.randn(16, WIDTH, dtype=torch.float64))  # statistics that are not the initial ones
    return net


def transcribed(net, pairs, method, options):
    """The penalty at given pairs, row by row as the report has it, by a copy of the model for each point."""
    at = []
    for z in pairs:
        fresh = copy.deepcopy(net).eval()
        for p, q in zip(fresh.parameters(), net.parameters(), strict=True):
            p.data, p.grad = q.data, None
        at.append((fresh, fresh(z.clone())))
    distance = torch.linalg.vector_norm(pairs.x_prime - pairs.x, options["input_norm"], dim=1)
    q = torch.linalg.vector_norm(at[1][1] - at[0][1], options["output_norm"], dim=1) / distance
    q = q ** options["exponent"]
    (q.max() if method == "max" else q.mean()).backward()
    return (q.max() if method == "max" else q.mean()).detach(), sum(gradients(model) for model, _ in at)


@given(NETWORKS, OPTIONS, st.sampled_from(["max", "sum", "tv", "ptv"]), st.booleans())
def test_any_network_with_any_options(layers, options, method, training):
    net, x = build(layers).train(training), torch.randn(8, WIDTH, dtype=torch.float64)
    reference = copy.deepcopy(net)
    penalty, before = penalty_of(method, **options), traces(net)
    kept = {id(m): {**vars(m)} for m in net.modules()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        value = penalty(net, x)
    assert same(traces(net), before)
    assert all(vars(m)[name] is held for m in net.modules() for name, held in kept[id(m)].items())
    net.zero_grad()
    value.backward()
    exact, gradient = transcribed(reference, penalty.pairs, method, options)
    torch.testing.assert_close(value.detach(), exact, rtol=1e-9, atol=1e-12)
    follows = training and any(name == "batch norm" for name, _ in layers)  # another gradient: see test_batchnorm
    if not follows:
        torch.testing.assert_close(gradients(net), gradient, rtol=1e-6, atol=1e-10)
