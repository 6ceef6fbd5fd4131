"""The sweep works on a handful of samples, and finds what is wrong."""

import numpy as np
import pytest
import torch
from torch import nn

from sweep import judge as judging
from sweep import torch_modules
from sweep.isolated import Judge
from sweep.judge import judge
from sweep.sample import Sample
from sweep.table import markdown
from torchlipreg import LipschitzPenalty


@pytest.mark.parametrize("name", ["Linear 0", "Conv2d 0", "BatchNorm1d 0", "LayerNorm 0", "GLU 0"])
def test_modules_of_torch_are_right(name):
    pytest.importorskip("expecttest")  # which torch's own tests need
    found = judge(lambda: torch_modules.builds(name), differences=True)
    assert found["outcome"] == "right", found
    assert {"eval", "train", "limit"} <= set(found["checks"])


def small():
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))
    return Sample(net, torch.randn(4, 6, dtype=torch.float64))


def test_a_network_with_batchnorm_is_right():
    found = judge(lambda: [small], differences=True)
    assert found["outcome"] == "right", found
    assert found["checks"] == ["eval", "train", "limit", "differences"]


class TooLarge(LipschitzPenalty):
    def __call__(self, *args, **kwargs):
        return super().__call__(*args, **kwargs) * 1.001


class Leaves(LipschitzPenalty):
    def __call__(self, model, *args, **kwargs):
        np.random.random()
        return super().__call__(model, *args, **kwargs)


class StopsGradients(LipschitzPenalty):
    def __call__(self, *args, **kwargs):
        value = super().__call__(*args, **kwargs)
        return value.detach() + 0.5 * (value - value.detach())


@pytest.mark.parametrize(
    ("wrong", "what"), [(TooLarge, "value in eval"), (Leaves, "random numbers"), (StopsGradients, "gradient in eval")]
)
def test_a_wrong_penalty_is_found(wrong, what, monkeypatch):
    monkeypatch.setattr(judging, "LipschitzPenalty", wrong)
    found = judge(lambda: [small])
    assert found["outcome"] == "WRONG"
    assert what in found["detail"]


def test_a_refusal_is_no_failure_and_a_failure_no_refusal():
    loss = judge(lambda: [lambda: Sample(nn.Linear(6, 3), torch.randn(4, 6).double(), lambda net, z: net(z).sum())])
    assert loss["outcome"] == "refused"
    assert "batch axis" in loss["detail"]
    broken = judge(lambda: [lambda: Sample(nn.Linear(6, 3), torch.randn(4, 7).double())])
    assert broken["outcome"] == "skipped"
    assert "cannot be run" in broken["detail"]


def test_a_constant_network_is_no_proof():
    flat = judge(lambda: [lambda: Sample(nn.Linear(6, 3), torch.randn(4, 6).double(), lambda net, z: net(0 * z))])
    assert flat["outcome"] == "skipped"


def test_the_table_counts_outcomes_and_names_reasons():
    rows = [
        {"group": "torch", "name": "A", "outcome": "right", "detail": "", "checks": ["limit"], "limit": "right"},
        {"group": "torch", "name": "B", "outcome": "refused", "detail": "a | b"},
        {"group": "timm", "name": "C", "outcome": "WRONG", "detail": "off"},
    ]
    page = markdown(rows, "2026-01-01", {"torch": "2"})
    assert "| torch | 2 | 1 | 1 | 0 | 0 | 1 | 0 | 0 | 0 |" in page
    assert "| torch | B | a \\| b |" in page
    assert "## Wrong" in page


@pytest.mark.slow
def test_a_sample_that_hangs_is_ended_and_the_next_one_judged():
    judge = Judge(limit=0.01)
    assert judge.ask("torch", "Linear 0")["outcome"] == "skipped"
    judge.limit = 200
    assert judge.ask("torch", "Linear 0")["outcome"] == "right"
    judge.close()
