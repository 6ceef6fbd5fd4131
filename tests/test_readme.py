"""Every Python block of the README runs, in order, in one namespace that holds what a user's script would."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def process_group():
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=torch.distributed.HashStore())
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def namespace(tmp_path_factory, process_group):
    model = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    x, y = torch.rand(300, 64), torch.randint(10, (300,))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=128)
    optimizer = torch.optim.Adam(model.parameters())

    def train_one_epoch(model, loader, penalty):
        for xb, yb in loader:
            out = model(xb)
            (nn.functional.cross_entropy(out, yb) + penalty(model, xb, out)).backward()
        return 0.95

    return {
        "torch": torch,
        "rank": 0,
        "net": nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)),
        "DistributedDataParallel": nn.parallel.DistributedDataParallel,
        "model": model,
        "x": x,
        "loader": loader,
        "criterion": nn.CrossEntropyLoss(),
        "optimizer": optimizer,
        "train_one_epoch": train_one_epoch,
        "path": tmp_path_factory.mktemp("readme") / "checkpoint.pt",
    }


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_block_runs(namespace, number):
    exec(compile(BLOCKS[number], f"README block {number}", "exec"), namespace)


def test_ten_seconds_shows_a_smoother_model(namespace, capsys):
    block = next(b for b in BLOCKS if "load_digits" in b)
    exec(block, dict(namespace))
    plain, penalised = (float(line.split()[-1]) for line in capsys.readouterr().out.splitlines())
    assert penalised < 0.7 * plain


def test_make_targets_exist():
    targets = set(re.findall(r"^make ([\w-]+)", README, re.MULTILINE)) | set(re.findall(r"`make ([\w-]+)`", README))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
