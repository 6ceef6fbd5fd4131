"""Every Python block of the README runs, in order, in one namespace that holds what a user's script would."""

import re
from pathlib import Path

import pages
import pytest
import torch

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = [code for code, _ in pages.blocks(README)]


@pytest.fixture(scope="module")
def process_group():
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=torch.distributed.HashStore())
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def namespace(tmp_path_factory, process_group):
    return pages.what_a_script_has(tmp_path_factory.mktemp("readme"))


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
