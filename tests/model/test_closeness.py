"""Masked logits: numbers far above all else hide neither randomness nor Dropout nor other rows."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from zoo import bare, gradients, penalty_of

from torchlipreg import lipschitz_lower_bound
from torchlipreg.call.looks import rounding
from torchlipreg.geometry.pairs import PairSet
from torchlipreg.geometry.quotient import PairQuotient, Resolution
from torchlipreg.inspection.closeness import differs, without_masks
from torchlipreg.outputs import root_probabilities

LEAST = torch.finfo(torch.float32).min
MASKS = [-1e9, LEAST, -1e4]


class Masked(nn.Module):
    """A classifier of which some classes, others for each row, are not to be chosen."""

    def __init__(self, mask, noise=lambda h, net: h):
        super().__init__()
        self.mask, self.noise = mask, noise
        self.body, self.head = nn.Linear(6, 16), nn.Linear(16, 10)

    def forward(self, x):
        logits = self.head(self.noise(self.body(x).tanh(), self))
        hidden = torch.arange(10) % 3 == (torch.arange(len(x)) % 3)[:, None]
        return logits.masked_fill(hidden, self.mask)


@pytest.mark.parametrize("mask", [*MASKS, -math.inf])
def test_masks_set_no_scale(mask):
    y = torch.randn(8, 10)
    masked = y.index_fill(1, torch.tensor([2, 5]), mask)
    assert torch.equal(without_masks(masked), y.index_fill(1, torch.tensor([2, 5]), 0.0))
    again = masked.clone()
    assert not differs(masked, again, 1e-5).any()
    again[3, 4] += 1e-3
    assert differs(masked, again, 1e-5).nonzero().tolist() == [[3, 4]]
    assert not differs(masked, masked * (1 - 1e-7), 1e-5).any()


@pytest.mark.parametrize("y", [torch.zeros(4, 3), torch.ones(4, 3), 1e9 * torch.randn(4, 3), torch.tensor([[1e9]])])
def test_what_is_no_mask_stays(y):
    assert torch.equal(without_masks(y), y)


def test_what_is_not_finite_is_the_same_only_as_itself():
    values = torch.tensor([math.nan, math.inf, -math.inf, 1.0])
    found = torch.stack([differs(values, value.expand(4), 1e-5) for value in values])
    assert torch.equal(~found, torch.eye(4, dtype=torch.bool))


@pytest.mark.parametrize("mask", MASKS)
def test_dropout_of_the_users_own_is_seen(mask):
    """The loop's outputs, noisy, must not serve as f(x)."""
    torch.manual_seed(0)
    net = Masked(mask, lambda h, net: F.dropout(h, 0.3, net.training)).train()
    x, penalty = torch.randn(32, 6), bare("tv", 1.0)
    value = penalty(net, x, net(x))
    assert not penalty.reuses_outputs
    value.backward()
    found = gradients(net).clone()
    net.zero_grad()
    pairs = penalty.pairs
    net.eval()
    exact = ((net(pairs.x_prime) - net(pairs.x)).norm(dim=1) / (pairs.x_prime - pairs.x).norm(dim=1)).square().mean()
    exact.backward()
    torch.testing.assert_close(value, exact, rtol=1e-3, atol=0)
    torch.testing.assert_close(found, gradients(net), rtol=1e-2, atol=1e-3 * float(found.abs().max()))


@pytest.mark.parametrize("mask", MASKS)
def test_without_dropout_the_loops_outputs_serve(mask):
    net, x, penalty = Masked(mask), torch.randn(32, 6), bare("tv", 1.0)
    penalty(net, x, net(x))
    assert penalty.reuses_outputs


@pytest.mark.filterwarnings("ignore:The penalty is not finite")  # two masks of the smallest number overflow
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("method", ["tv", "max"])
def test_randomness_and_other_rows_are_seen(mask, method):
    x = torch.randn(16, 6)
    with pytest.raises(ValueError, match="two forwards"):
        penalty_of(method)(Masked(mask, lambda h, net: h + 0.1 * torch.randn_like(h)), x)
    with pytest.warns(UserWarning, match="other rows"):
        penalty_of(method)(Masked(mask, lambda h, net: h - h.mean(0)), x)


def test_masks_are_no_rounding_errors():
    x, x_prime = torch.randn(8, 6), torch.randn(8, 6)
    net = Masked(-1e9).requires_grad_(False)
    q = PairQuotient(net, 2, 2, Resolution(0.1, 1e-4))
    pairs = PairSet(x, x_prime)
    with_masks = rounding(q, pairs, q(pairs), net(x))
    assert with_masks < 1e-5


@pytest.mark.parametrize("method", ["tv", "max"])
def test_infinite_outputs_are_refused_with_the_way_out(method):
    net, x = Masked(-math.inf), torch.randn(16, 6)
    with pytest.raises(ValueError, match=r"finite outputs, but on the first batch 54 of 160 are -inf") as caught:
        penalty_of(method)(net, x)
    assert "root_probabilities" in str(caught.value)
    with pytest.raises(ValueError, match="finite outputs"):
        lipschitz_lower_bound(net, x)
    assert penalty_of(method, output=root_probabilities)(net, x).isfinite()
