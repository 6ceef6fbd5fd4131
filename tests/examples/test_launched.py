"""The scripts that a reader copies from, started as a user would: two processes, two nodes, killed and resumed."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from scripts import TIMEOUT, end, output, output_once_spared, wait_for

EXAMPLES = Path(__file__).parents[2] / "examples"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]

pytestmark = pytest.mark.distributed


@pytest.fixture
def torchrun(start):
    def torchrun(*arguments):
        return start(*TORCHRUN, *arguments)

    return torchrun


def local(*arguments):
    return "--standalone", "--nproc_per_node", "2", *arguments


def losses(text):
    return [float(value) for value in re.findall(r"epoch \d+: loss ([\d.]+)", text)]


def test_ddp_minimal(torchrun):
    def once():
        process = torchrun(*local(EXAMPLES / "ddp_minimal.py"))
        text, _ = process.communicate(timeout=TIMEOUT)
        return process.returncode, text

    found = losses(output_once_spared(once))
    assert len(found) == 5
    assert found[-1] < 0.8 * found[0]


@pytest.mark.slow
def test_ddp_minimal_on_two_nodes(torchrun, free_port):
    def node(rank):
        where = ("--nnodes", 2, "--node_rank", rank, "--master_addr", "127.0.0.1", "--master_port", free_port)
        return torchrun(*where, "--nproc_per_node", 1, EXAMPLES / "ddp_minimal.py")

    nodes = [node(0), node(1)]
    first, second = (output(process) for process in nodes)
    assert len(losses(first)) == 5
    assert losses(second) == []


def train(*options):
    return local(EXAMPLES / "accelerate_train.py", "--penalty", "max", "--batch-size", 128, *options)


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(torchrun, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    text = output(torchrun(*train("--epochs", 2, "--output", whole)))
    assert re.search(r"epoch 2: accuracy 0\.\d+.*'lipschitz': [\d.]+", text)

    killed = torchrun(*train("--epochs", 2, "--output", parts))
    wait_for(parts / "epoch-1", killed)
    end(killed)
    assert not (parts / "epoch-2").exists()
    output(torchrun(*train("--epochs", 2, "--output", parts, "--resume")))

    names = sorted(path.name for path in (whole / "epoch-2").iterdir())
    assert {"model.safetensors", "lipschitz_penalty_0.bin"} < set(names)
    different = [n for n in names if (whole / "epoch-2" / n).read_bytes() != (parts / "epoch-2" / n).read_bytes()]
    assert different == []


def test_accelerate_on_one_process_and_a_folder_of_images(cpu_environment, tmp_path):
    for split, count in (("train", 6), ("val", 3)):
        for label in ("light", "dark"):
            (tmp_path / split / label).mkdir(parents=True)
            for i in range(count):
                grey = 30 * i + (100 if label == "light" else 0)
                Image.new("RGB", (20, 24), (grey, grey, 80)).save(tmp_path / split / label / f"{i}.png")
    options = ["--data", tmp_path, "--epochs", 1, "--batch-size", 4, "--accumulate", 2, "--mixed-precision", "bf16"]
    command = [sys.executable, EXAMPLES / "accelerate_train.py", *options, "--output", tmp_path / "out"]
    found = subprocess.run(
        list(map(str, command)), env=cpu_environment, capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    assert found.returncode == 0, found.stderr[-4000:]
    assert "epoch 1: accuracy" in found.stdout


SAVED = ("model.safetensors", "optimizer.pt", "scheduler.pt", "lipschitz_penalty_0.bin")


def trainer(name, processes, folder, method):
    where = ("--standalone", "--nproc_per_node", processes, EXAMPLES / name)
    return (*where, "--output_dir", folder, "--penalty", method, "--max_steps", 40, "--save_strategy", "steps",
            "--save_steps", 10, "--eval_strategy", "no", "--per_device_train_batch_size", 8)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "processes", "method"), [("trainer_image.py", 1, "tv"), ("trainer_text.py", 2, "max")]
)
def test_a_killed_trainer_goes_on_as_the_uninterrupted(torchrun, tmp_path, name, processes, method):
    whole, parts, without = (tmp_path / folder for folder in ("whole", "parts", "without"))

    def different(folder):
        there, here = (f / "checkpoint-40" for f in (whole, folder))
        return [n for n in SAVED if (there / n).read_bytes() != (here / n).read_bytes()]

    text = output(torchrun(*trainer(name, processes, whole, method)))
    assert re.search(r"'penalty': '[\d.e-]+'", text)
    assert re.search(r"eval_accuracy += +0\.\d+", text)

    killed = torchrun(*trainer(name, processes, parts, method))
    wait_for(parts / "checkpoint-10" / "trainer_state.json", killed)
    end(killed)
    assert not (parts / "checkpoint-40").exists()
    shutil.copytree(parts, without)
    output(torchrun(*trainer(name, processes, parts, method)))
    assert different(parts) == []

    for saved in without.glob("checkpoint-*/lipschitz_penalty_0.bin"):
        saved.unlink()
    assert "its pairs start anew" in output(torchrun(*trainer(name, processes, without, method)))
    assert set(different(without)) > {"model.safetensors"}


CONFIG = """
compute_environment: LOCAL_MACHINE
distributed_type: 'NO'
mixed_precision: bf16
num_machines: 1
num_processes: 1
use_cpu: true
"""


def test_accelerate_launch_with_a_config_file(cpu_environment, tmp_path):
    (tmp_path / "config.yaml").write_text(CONFIG)
    options = ["--epochs", 1, "--accumulate", 2, "--batch-size", 64, "--penalty", "max", "--output", tmp_path / "out"]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", tmp_path / "config.yaml"]
    command = [*map(str, [*command, EXAMPLES / "accelerate_text.py", *options])]
    found = subprocess.run(
        command, env=cpu_environment, capture_output=True, text=True, timeout=2 * TIMEOUT, check=False
    )
    assert found.returncode == 0, found.stderr[-4000:]
    assert "1 process(es), mixed precision: bf16" in found.stdout
    assert "epoch 1: accuracy" in found.stdout
    assert (tmp_path / "out" / "epoch-1" / "lipschitz_penalty_0.bin").exists()


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("ddp_minimal.py", 60),
        ("accelerate_train.py", 120),
        ("accelerate_text.py", 120),
        ("trainer_image.py", 120),
        ("trainer_text.py", 120),
    ],
)
def test_examples_stay_short(name, lines):
    assert len((EXAMPLES / name).read_text().splitlines()) < lines
