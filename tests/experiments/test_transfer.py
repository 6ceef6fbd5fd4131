"""What the default does to data: the experiment in its quick form, and the claims of the published table."""

import contextlib
import io
import json
import statistics
from pathlib import Path

import pytest
import torch

EXPERIMENT = "examples.experiments.transfer.__main__"
ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "examples" / "experiments" / "results"
SMALL = ["digits-mlp", "diabetes-mlp", "tumours-mlp"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    from examples.experiments.transfer.__main__ import main

    out = tmp_path_factory.mktemp("transfer")
    arguments = ["--quick", "--out", str(out), "--subjects", *SMALL]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        first = main(arguments)
        written = {path: path.stat().st_mtime_ns for path in out.glob("*-tv-*.json")}
        again = main(arguments)
    return out, first, again, written


def test_a_row_for_each_setting_and_records_that_are_kept(made):
    out, first, again, written = made
    assert [row[1] for row in first.rows] == ["plain", "default", "÷ 10", "× 10"] * 3
    assert first == again
    assert len(written) == 12
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert "LipschitzPenalty('tv'" in (out / "transfer-tv.md").read_text(encoding="utf-8")


def test_a_record_of_other_settings_is_made_anew(made):
    from examples.experiments.transfer.__main__ import options_from, read
    from examples.experiments.transfer.runs import Run

    out, *_ = made
    options = options_from(["--out", str(out)])
    job = Run("digits-mlp", "default", 0)
    assert read(job, options) is not None
    path = next(path for path in out.glob("digits-mlp-tv-1-0.json"))
    record = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(record | {"settings": "others"}), encoding="utf-8")
    assert read(job, options) is None


def test_the_attack_stays_in_its_ball_and_does_harm():
    from examples.experiments.transfer.runs import EPSILON, attacked

    net, x = torch.nn.Linear(6, 3), torch.rand(16, 6)
    clean = net(x).detach()
    moved = attacked(lambda z: (net(z) - clean).square().sum(), x, (0.0, 1.0))
    assert (moved - x).abs().max() <= EPSILON + 1e-6
    assert 0 <= moved.min() <= moved.max() <= 1
    noise = x + EPSILON * (2 * torch.rand(16, 6) - 1).sign()
    assert (net(moved) - clean).norm(dim=1).mean() > 1.3 * (net(noise.clamp(0, 1)) - clean).norm(dim=1).mean()


def test_texts_are_told_apart_by_words_that_are_there():
    from examples.experiments.transfer.subjects import LENGTH, WORDS, texts

    data = texts("", False)
    assert data.train_x.shape[1] == LENGTH
    assert 0 <= data.train_x.min() < data.train_x.max() <= WORDS
    assert len(data.train_y.unique()) == 5


def published():
    path = RESULTS / "transfer-tv.json"
    if not path.exists():
        pytest.skip("there are no published results of this experiment yet")
    records = json.loads(path.read_text(encoding="utf-8"))
    subjects = dict.fromkeys(name.rsplit("-", 3)[0] for name in records)

    def mean(subject, setting, number):
        found = [r[number] for name, r in records.items() if name.startswith(f"{subject}-tv-{setting}-")]
        return statistics.mean(found), len(found)

    return subjects, mean


def test_published_defaults_cost_at_most_five_points():
    from examples.experiments.transfer.subjects import SUBJECTS

    subjects, mean = published()
    assert set(subjects) == set(SUBJECTS)
    for subject in subjects:
        (plain, seeds), (ours, same) = mean(subject, 0, "clean"), mean(subject, 1, "clean")
        assert seeds == same == 3, subject
        allowed = 0.1 * (1 - plain) if SUBJECTS[subject].regression else 0.05
        assert ours >= plain - allowed, subject


def test_published_defaults_move_less():
    subjects, mean = published()
    for subject in subjects:
        share = mean(subject, 1, "movement")[0] / mean(subject, 0, "movement")[0]
        assert share < (1.02 if subject == "diabetes-mlp" else 0.95), subject  # which nothing of that size moves


def test_the_settings_page_shows_the_published_table():
    path = RESULTS / "transfer-tv.md"
    if not path.exists():
        pytest.skip("there are no published results of this experiment yet")
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert path.read_text(encoding="utf-8").strip() in page
