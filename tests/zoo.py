"""Small models and what the tests ask of any model."""

import weakref

import torch
import torch.nn.functional as F
from torch import nn

from torchlipreg import LipschitzPenalty

METHODS = ("max", "sum", "tv", "ptv")
ASCENTS = ("power", "sgd", "nesterov", "adam")


def mlp(inputs=6, outputs=3):
    return nn.Sequential(nn.Linear(inputs, 8), nn.Tanh(), nn.Linear(8, outputs))


def conv_bn():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 6, 5)
    )


def dropout_net():
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3))


class FunctionalDropout(nn.Module):
    """As timm's models: Dropout called by the parent, with its own training flag."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.last(F.dropout(self.first(x).tanh(), 0.5, training=self.training))


class StochasticDepth(nn.Module):
    """A block that is left out at random, by a rate whose name nobody knows."""

    def __init__(self, rate=0.5):
        super().__init__()
        self.rate, self.block, self.last = rate, nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        if self.training:
            kept = torch.rand(len(x), 1, dtype=x.dtype) >= self.rate
            return self.last(x + kept * self.block(x).tanh() / (1 - self.rate))
        return self.last(x + self.block(x).tanh())


class Recurrent(nn.Module):
    """An LSTM with Dropout between its layers, on inputs of shape (N, 5, 4)."""

    def __init__(self, dropout=0.5):
        super().__init__()
        self.lstm, self.last = nn.LSTM(4, 6, num_layers=2, dropout=dropout, batch_first=True), nn.Linear(6, 3)

    def forward(self, x):
        return self.last(self.lstm(x)[0][:, -1])


def bare(method="tv", weight=1e-3, **settings):
    """Return a penalty of bare ℓ2 quotients at a distance of .1, unless the settings say otherwise."""
    if method in ("tv", "ptv"):
        settings.setdefault("radius", 0.1)
    return LipschitzPenalty(method, weight, **{"input_norm": 2, "scale": 1.0, **settings})


def penalty_of(method, weight=1.0, **settings):
    """Return such a penalty with few pairs."""
    if method in ("max", "sum"):
        settings.setdefault("num_pairs", 4)
    return bare(method, weight, **settings)


def gradients(net):
    """Return all parameters' gradients in one vector."""
    return torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in net.parameters()])


_NOTED = weakref.WeakKeyDictionary()


class Seen:
    """What hooks and forwards of a test note: out of the reach of a penalty, which would put a list back."""

    @property
    def items(self):
        return _NOTED.setdefault(self, [])

    def append(self, item):
        self.items.append(item)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]

    def clear(self):
        self.items.clear()


class Counting(nn.Linear):
    """Notes each forward."""

    def __init__(self, inputs, outputs, ran):
        super().__init__(inputs, outputs)
        self.ran = ran

    def forward(self, x):
        self.ran.append(1)
        return super().forward(x)


def traces(net):
    """Return all that a penalty must not change: flags, buffers, parameters, gradients, random state."""
    modules = dict(net.named_modules())
    return {
        "flags": {name: m.training for name, m in modules.items()},
        "dropout": {name: m.dropout for name, m in modules.items() if isinstance(m, nn.RNNBase)},
        "identity": {name: [id(b) for b in m._buffers.values()] for name, m in modules.items()},
        "attributes": {name: sorted(vars(m)) for name, m in modules.items()},
        "buffers": {name: b.clone() for name, b in net.named_buffers()},
        "parameters": {name: p.detach().clone() for name, p in net.named_parameters()},
        "versions": {name: p._version for name, p in net.named_parameters()},
        "requires_grad": {name: p.requires_grad for name, p in net.named_parameters()},
        "gradients": {name: None if p.grad is None else p.grad.clone() for name, p in net.named_parameters()},
        "random": torch.get_rng_state(),
    }


def same(a, b):
    """Say whether two nested structures are equal bit for bit."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b
