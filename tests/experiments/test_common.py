"""What common/ promises: a new data set is one file, a new rival is one file, also with several workers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("secmlt", exc_type=ImportError)
pytest.importorskip("pyautoattack", exc_type=ImportError)

ROOT = Path(__file__).parents[2]
HEAD = """
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from examples.experiments.common import command
from examples.experiments.common.experiment import Data, Experiment
from examples.experiments.common.measures import Measure, curves
from examples.experiments.common.recipes import Recipe, flip
from examples.experiments.common.robustness import robustness
"""
DATA_SET = """
def load(folder, split, quick):
    x = torch.rand(400, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0, 0, 0] > 0.5).long()
    return Data(x[:300], y[:300], x[300:], y[300:])

def build(network, quick):
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))

def attacked(model, x, y, quick):
    return curves(model, x, y, quick, {"fgsm": (0.1,)}, {})

def tables(results, network):
    return [robustness(results, network, {"clean": "clean", "FGSM .1": "fgsm 0.1"}, {})]

SQUARES = Experiment(
    name="squares",
    images=("squares", "few squares"),
    load=load,
    build=build,
    epochs={"net": 3},
    recipes={"net": {"plain": Recipe("plain"), "tv": flip("our tv", "tv", 0.01)}},
    measures={"curves": Measure(attacked, 0.1)},
    tables=tables,
    batch=50,
)

if __name__ == "__main__":
    command.main(SQUARES, "squares")
"""
RIVAL = """
from squares import SQUARES

def smoothed(model, x, y, smoothing=0.2):
    return cross_entropy(model(x), y, label_smoothing=smoothing)

if __name__ == "__main__":
    command.main(SQUARES.also({"net": {"mine": Recipe("label smoothing", smoothed)}}), "mine")
"""


@pytest.mark.slow
@pytest.mark.distributed
def test_a_data_set_and_a_rival_are_one_file_each(tmp_path):
    (tmp_path / "squares.py").write_text(HEAD + DATA_SET)
    (tmp_path / "mine.py").write_text(HEAD + RIVAL)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])}

    def run(module, *options):
        command = [sys.executable, "-m", module, "--seeds", "1", *options]
        found = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert found.returncode == 0, found.stderr[-4000:]
        return found.stdout

    printed = run("squares", "--workers", "2")
    assert "our tv" in printed
    assert "FGSM .1" in printed
    assert "label smoothing" not in printed
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "squares-test").glob("net-*")}
    assert len(written) == 4
    assert "label smoothing" in run("mine")
    assert {path: path.stat().st_mtime_ns for path in written} == written, "what was trained is trained again"
