"""examples/lightning_train.py, started as a user would: killed and resumed, and on two processes."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("lightning")

SCRIPT = Path(__file__).parents[2] / "examples" / "lightning_train.py"
TIMEOUT = 120
EPOCHS = 6

pytestmark = pytest.mark.distributed


@pytest.fixture
def start(cpu_environment, tmp_path):
    """Start the script; whatever still runs when the test is over is killed."""
    processes = []

    def start(*options):
        command = [sys.executable, SCRIPT, "--accelerator", "cpu", "--penalty", "max", *options]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        environment = {**cpu_environment, "COLUMNS": "120"}
        session = {"env": environment, "cwd": tmp_path, "start_new_session": True}
        processes.append(subprocess.Popen(list(map(str, command)), **pipes, **session))
        return processes[-1]

    yield start
    for process in processes:
        kill(process)
        process.stdout.close()


def kill(process):
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)  # its own session, with the second process
        process.wait(TIMEOUT)


def output(process):
    text, _ = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, text[-4000:]
    return text


def wait_for(path, process):
    deadline = time.monotonic() + TIMEOUT
    while not path.exists():
        assert process.poll() is None, process.communicate()[0][-4000:]
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.02)


def saved(folder):
    checkpoint = torch.load(folder / "last.ckpt", weights_only=True)
    return {name: checkpoint[name] for name in ("state_dict", "optimizer_states", "epoch", "global_step")} | {
        "penalty": checkpoint["callbacks"].get("LipschitzCallback")
    }


def leaves(value):
    """Return everything in nested dicts and lists in plain, comparable form."""
    return torch.utils._pytree.tree_map(lambda v: v.tolist() if isinstance(v, torch.Tensor) else v, value)


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(start, tmp_path):
    whole, parts, without = (tmp_path / name for name in ("whole", "parts", "without"))
    text = output(start("--epochs", EPOCHS, "--output", whole))
    assert re.search(rf"epoch {EPOCHS}: .*'penalty': 0\.\d+, 'lipschitz': [\d.]+.*'accuracy': 0\.\d+", text)
    assert "lipschitz:" in text  # in the progress bar

    killed = start("--epochs", EPOCHS, "--output", parts)
    wait_for(parts / "last.ckpt", killed)
    kill(killed)
    assert not (parts / f"epoch={EPOCHS - 1}.ckpt").exists()
    shutil.copytree(parts, without)
    output(start("--epochs", EPOCHS, "--output", parts, "--resume"))
    assert leaves(saved(parts)) == leaves(saved(whole))

    checkpoint = torch.load(without / "last.ckpt", weights_only=True)
    del checkpoint["callbacks"]["LipschitzCallback"]
    torch.save(checkpoint, without / "last.ckpt")
    assert "There is no penalty in the checkpoint" in output(start("--epochs", EPOCHS, "--output", without, "--resume"))
    assert leaves(saved(without)["state_dict"]) != leaves(saved(whole)["state_dict"])


@pytest.mark.slow
def test_two_processes_in_bfloat16(start, tmp_path):
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
    assert re.search(r"epoch 1: .*'lipschitz': [\d.]+", output(start(*options)))
    ranks = saved(tmp_path / "two")["penalty"]["penalty"]["ranks"]
    assert len(ranks) == 2
    assert not torch.equal(ranks[0]["pairs"]["x"], ranks[1]["pairs"]["x"])


def test_the_example_stays_short():
    assert len(SCRIPT.read_text().splitlines()) < 120
