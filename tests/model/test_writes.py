"""A forward that writes into what nobody puts back is told, and one that does not is left in peace."""

import warnings

import pytest
import torch
from torch import nn
from zoo import mlp, penalty_of

from torchlipreg.inspection.reuse import AGAIN
from torchlipreg.model.traces.buffers import LARGE

BANK = torch.zeros(16, 3)


class OfAll(nn.Module):
    """Keeps features in a tensor of the whole program."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, x):
        y = self.linear(x)
        BANK[: len(x)] = y.detach()
        return y


class Large(OfAll):
    """Keeps them in an attribute that is too large to be cloned in each call."""

    def __init__(self):
        super().__init__()
        self.bank = torch.zeros(LARGE // 3 + 1, 3)

    def forward(self, x):
        y = self.linear(x)
        self.bank[: len(x)].add_(y.detach())
        return y


class Deep(OfAll):
    """Keeps a mean in a tuple, by an operation with an output argument."""

    def __init__(self):
        super().__init__()
        self.means = (torch.zeros(3), torch.zeros(3))

    def forward(self, x):
        y = self.linear(x)
        torch.add(self.means[1], y.detach().mean(0), out=self.means[1])
        return y


class Several(OfAll):
    """Two of a list of tensors at once."""

    def __init__(self):
        super().__init__()
        self.sums = (torch.zeros(3), torch.zeros(3))

    def forward(self, x):
        y = self.linear(x)
        torch._foreach_add_(list(self.sums), [torch.zeros(3), y.detach().sum(0)])
        return y


@pytest.mark.parametrize("make", [OfAll, Large, Deep, Several])
def test_a_write_that_lasts_is_told_once(make):
    net, x, penalty = make(), torch.randn(8, 6), penalty_of("tv")
    with pytest.warns(UserWarning, match=r"writes into a tensor .*aten.*register_buffer"):
        penalty(net, x, net(x))
    penalty(net, x, net(x))  # warnings are errors


class Constrained(OfAll):
    """Its weights are brought to a norm in each forward: the second time changes nothing but roundings."""

    def forward(self, x):
        with torch.no_grad():
            self.linear.weight.div_(self.linear.weight.norm())
        return self.linear(x)


class Inside(OfAll):
    """Writes into what it has just made, in some ways."""

    def __init__(self):
        super().__init__()
        self.register_buffer("steps", torch.zeros(()))
        self.mean, self.books = torch.zeros(3), {"sum": torch.zeros(3)}
        self.hidden = [mlp(3, 3), nn.BatchNorm1d(3)]

    def forward(self, x):
        y, total = self.linear(x), torch.tensor(0.0)
        total += y.detach().sum()
        made = torch.zeros(len(x), 3)
        made[:, 1] = 1.0
        made.T[0].mul_(0.0)
        new = torch.Tensor(3).fill_(0.0)
        new.add_(y.detach().mean(0))
        unseen = torch.frombuffer(bytearray(12), dtype=torch.float32)
        unseen.add_(y.detach().mean(0)).mul_(2.0)
        torch.from_numpy(y.detach().numpy().copy()).sub_(1.0)
        self.steps += 1
        self.mean.mul_(0.9).add_(y.detach().mean(0))
        self.books["sum"].copy_(new)
        for module in self.hidden:
            y = module(y)
        return nn.functional.relu(y, inplace=True) + made + 0 * total


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "make", [Constrained, Inside, lambda: nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3), nn.ReLU(inplace=True))]
)
def test_what_leaves_nothing_is_not_told(make, training):
    net, x = make().train(training), torch.randn(8, 6)
    out = net(x)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        penalty_of("tv")(net, x, out)
    assert not [w for w in told if "writes into" in str(w.message)]


def test_side_inputs_are_watched_and_the_input_is_a_copy():
    net = mlp()

    def overwrites(x, *, condition):
        condition.copy_(x.detach())
        return net(x.mul_(2.0))

    x, condition = torch.randn(8, 6), torch.ones(8, 6)
    before = x.clone()
    with pytest.warns(UserWarning, match=r"writes into a tensor .*aten.copy_.*\(8, 6\)"):
        penalty_of("tv")(overwrites, x, model_kwargs={"condition": condition})
    assert torch.equal(x, before)


class Momentum(nn.Module):
    """A teacher that follows the student, in each forward: as He et al. (arXiv:1911.05722) have it."""

    def __init__(self, write):
        super().__init__()
        self.student, self.teacher, self.write = nn.Linear(6, 3), nn.Linear(6, 3).requires_grad_(False), write

    def forward(self, x):
        with torch.no_grad():
            for ours, theirs in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                self.write(ours, theirs)
        return self.student(x) + 1e-6 * self.teacher(x)


def _assigns(ours, theirs):
    ours.data = 0.9 * ours.data + 0.1 * theirs.data


@pytest.mark.parametrize("write", [_assigns, lambda a, b: a.lerp_(b, 0.1), lambda a, b: a.data.lerp_(b, 0.1)])
@pytest.mark.parametrize("starts_as_a_copy", [False, True])
def test_a_moving_average_of_parameters_is_told(write, starts_as_a_copy):
    """At first a teacher that is a copy does not move; it is looked at again."""
    torch.manual_seed(0)
    net, penalty = Momentum(write), penalty_of("tv")
    if starts_as_a_copy:
        net.teacher.load_state_dict(net.student.state_dict())

    def train():
        for _ in range(2 * AGAIN):
            penalty(net, torch.randn(8, 6)).backward()
            net.student.weight.data.add_(0.01)

    with pytest.warns(UserWarning, match=r"as of a momentum teacher, write where `self.training` is true") as told:
        train()
    assert len(told) == 1


def test_weights_that_are_normalised_in_each_forward_are_not_told():
    class Normalised(nn.Linear):
        def forward(self, x):
            self.weight.data = nn.functional.normalize(self.weight.data, dim=1)
            return super().forward(x)

    net, penalty = Normalised(6, 3), penalty_of("tv")
    net(torch.randn(8, 6))
    for _ in range(AGAIN + 1):
        penalty(net, torch.randn(8, 6)).backward()  # warnings are errors


def test_a_forward_that_casts_a_weight_works():
    class Cast(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 6))

        def forward(self, x):
            other = torch.float64 if self.weight.dtype == torch.float32 else torch.float32
            self.weight.data = self.weight.data.to(other)
            return x @ self.weight.to(x.dtype).mT

    net, x = Cast(), torch.randn(8, 6)
    penalty_of("tv")(net, x)
