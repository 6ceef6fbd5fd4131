"""`make gpu`: a part that fails is named and the others go on; the rehearsal passes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

EXPERIMENT = "examples.experiments.gpu.__main__"
ROOT = Path(__file__).parents[2]
NAMES = ["tests", "profile", "float32", "bfloat16", "compiled-resnet50", "compiled-vit_small", "cifar"]


def part(name, script, result=lambda text: text, limit=60):
    from examples.experiments.gpu.parts import Part

    return Part(name, ("-c", script), limit, result)


def missing(text):
    raise FileNotFoundError("/somewhere/of/this/machine")


def test_the_parts_take_less_than_ten_minutes(tmp_path):
    from examples.experiments.gpu.parts import parts

    found = parts(tmp_path, tmp_path, None, rehearse=False)
    assert [p.name for p in found] == NAMES
    assert sum(p.limit for p in found) <= 600
    for rehearse in (False, True):
        for p in parts(tmp_path, tmp_path, None, rehearse):
            assert rehearse == any(word in ("--quick", "--rehearse", "2") for word in p.command)
            assert not (rehearse and "cuda" in p.command)


@pytest.mark.parametrize("name", ["resnet50", "vit_small"])
def test_the_models_can_be_built(name):
    from examples.experiments.cost.contenders import SUBJECTS

    with torch.device("meta"):
        model = SUBJECTS[name].build(224)
        assert model(torch.rand(1, 3, 224, 224)).shape == (1, 10)


def test_a_failing_part_is_named_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    from examples.experiments.gpu import __main__ as command

    made = [
        part("good", "print('fine')"),
        part("code", "print('the reason'); raise SystemExit(3)"),
        part("late", "import time; time.sleep(60)", limit=0.5),
        part("nothing", "", missing),
        part("last", "print('fine')"),
    ]
    monkeypatch.setattr(command, "parts", lambda *args: made)
    failed = command.main(["--rehearse", "--patience", "1", "--out", str(tmp_path)])
    assert failed == ["code", "late", "nothing"]
    record = json.loads((tmp_path / "results" / "gpu.json").read_text())
    assert [name for name, entry in record["parts"].items() if entry["passed"]] == ["good", "last"]
    assert record["parts"]["code"]["why"] == "ended with code 3"
    assert record["parts"]["late"]["why"] == "not done after 0 seconds"
    assert "somewhere" not in json.dumps(record)
    told = capsys.readouterr().out
    assert "code: FAILED, ended with code 3" in told
    assert "    the reason" in told
    assert "| late | FAILED: not done" in (tmp_path / "results" / "gpu.md").read_text("utf-8")


def test_some_parts_anew_leave_the_others_in_the_record(tmp_path, monkeypatch):
    from examples.experiments.gpu import __main__ as command

    made = [part("first", "print(1)"), part("second", "print(2)")]
    monkeypatch.setattr(command, "parts", lambda *args: made)
    command.main(["--rehearse", "--out", str(tmp_path)])
    made[1] = part("second", "print(3)")
    command.main(["--rehearse", "--out", str(tmp_path), "--parts", "second"])
    record = json.loads((tmp_path / "results" / "gpu.json").read_text())["parts"]
    assert [entry["result"] for entry in record.values()] == ["1\n", "3\n"]


def test_tests_that_were_all_skipped_have_not_passed():
    from examples.experiments.gpu.parts import counts

    assert counts("31 passed, 1 skipped in 3s") == {"passed": 31, "skipped": 1}
    with pytest.raises(ValueError, match="no test passed"):
        counts("36 skipped in 3s")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so():
    from examples.experiments.gpu.__main__ import main

    with pytest.raises(SystemExit, match="no CUDA device"):
        main([])


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_the_rehearsal_passes(tmp_path):
    command = [sys.executable, "-m", "examples.experiments.gpu", "--rehearse", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    record = json.loads((tmp_path / "results" / "gpu.json").read_text(encoding="utf-8"))
    assert len(record["parts"]) == len(NAMES)
    assert all(entry["passed"] and entry["result"] for entry in record["parts"].values())
    assert (tmp_path / "results" / record["parts"]["cifar"]["result"]).exists()
    assert str(tmp_path) not in json.dumps(record)
