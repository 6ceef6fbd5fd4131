"""examples/lightning_train.py, started as a user would: killed and resumed, and on two processes."""

from __future__ import annotations

import re
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
from scripts import end, output, wait_for

pytest.importorskip("lightning")

SCRIPT = Path(__file__).parents[2] / "examples" / "lightning_train.py"
EPOCHS = 6

pytestmark = pytest.mark.distributed


@pytest.fixture
def train(start):
    def train(*options):
        return start(sys.executable, SCRIPT, "--accelerator", "cpu", "--penalty", "max", *options)

    return train


def saved(folder):
    checkpoint = torch.load(folder / "last.ckpt", weights_only=True)
    return {name: checkpoint[name] for name in ("state_dict", "optimizer_states", "epoch", "global_step")} | {
        "penalty": checkpoint["callbacks"].get("LipschitzCallback")
    }


def leaves(value):
    """Return everything in nested dicts and lists in plain, comparable form."""
    return torch.utils._pytree.tree_map(lambda v: v.tolist() if isinstance(v, torch.Tensor) else v, value)


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(train, tmp_path):
    whole, parts, without = (tmp_path / name for name in ("whole", "parts", "without"))
    text = output(train("--epochs", EPOCHS, "--output", whole))
    assert re.search(rf"epoch {EPOCHS}: .*'penalty': 0\.\d+, 'lipschitz': [\d.]+.*'accuracy': 0\.\d+", text)
    assert "lipschitz:" in text  # in the progress bar

    killed = train("--epochs", EPOCHS, "--output", parts)
    wait_for(parts / "last.ckpt", killed)
    end(killed, signal.SIGKILL)
    assert not (parts / f"epoch={EPOCHS - 1}.ckpt").exists()
    shutil.copytree(parts, without)
    output(train("--epochs", EPOCHS, "--output", parts, "--resume"))
    assert leaves(saved(parts)) == leaves(saved(whole))

    checkpoint = torch.load(without / "last.ckpt", weights_only=True)
    del checkpoint["callbacks"]["LipschitzCallback"]
    torch.save(checkpoint, without / "last.ckpt")
    assert "There is no penalty in the checkpoint" in output(train("--epochs", EPOCHS, "--output", without, "--resume"))
    assert leaves(saved(without)["state_dict"]) != leaves(saved(whole)["state_dict"])


@pytest.mark.slow
def test_two_processes_in_bfloat16(train, tmp_path):
    options = (
        "--devices",
        2,
        "--precision",
        "bf16-mixed",
        "--accumulate",
        2,
        "--epochs",
        1,
        "--output",
        tmp_path / "two",
    )
    assert re.search(r"epoch 1: .*'lipschitz': [\d.]+", output(train(*options)))
    ranks = saved(tmp_path / "two")["penalty"]["penalty"]["ranks"]
    assert len(ranks) == 2
    assert not torch.equal(ranks[0]["pairs"]["x"], ranks[1]["pairs"]["x"])


def test_the_example_stays_short():
    assert len(SCRIPT.read_text().splitlines()) < 120
