"""The experiment on few labels: its rivals, its choice of images, its quick form, its page."""

import contextlib
import io
import json
import math
import os
import statistics
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

EXPERIMENT = "examples.experiments.labels.__main__"
ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "examples" / "experiments" / "results"


def test_chosen_images_are_balanced_and_apart_from_those_to_validate_by():
    from examples.experiments.labels.runs import VALIDATION, chosen_rows

    y = torch.randint(10, (4_000,), generator=torch.Generator().manual_seed(1))
    for count in (100, 1_200):
        rows, validation = chosen_rows(y, count, seed=0)
        assert y[rows].bincount().tolist() == [count // 10] * 10
        assert len(validation) == min(count, VALIDATION)
        assert not set(rows.tolist()) & set(validation.tolist())
    assert not torch.equal(chosen_rows(y, 100, 0)[0], chosen_rows(y, 100, 1)[0])


def test_so_many_labels_are_wrong():
    from examples.experiments.labels.runs import spoiled

    y = torch.arange(10).repeat(1_000)
    assert torch.equal(spoiled(y, 0.0, 0), y)
    found = spoiled(y, 0.4, 0)
    assert (found != y).float().mean().item() == pytest.approx(0.4, abs=0.02)
    assert 0 <= found.min() <= found.max() == 9


def test_virtual_adversarial_training_finds_the_worst_direction():
    """On softmax(Wx) of small steps: the leading eigenvector of Wᵀ(diag p − p pᵀ)W."""
    from examples.experiments.labels.ways import adversarial_smoothness

    torch.manual_seed(0)
    net = nn.Linear(6, 3).double()
    x = torch.randn(8, 6, dtype=torch.float64)
    epsilon = 1e-2
    found = adversarial_smoothness(net, x, epsilon=epsilon, probe=1e-3, steps=30)
    p = net(x).softmax(1).detach()
    fisher = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    largest = torch.linalg.eigvalsh(net.weight.T @ fisher @ net.weight)[:, -1]
    assert found.item() == pytest.approx((epsilon**2 / 2 * largest).mean().item(), rel=0.03)


def test_imbalance_is_least_where_all_classes_are_predicted_equally_often():
    from examples.experiments.labels.ways import imbalance

    decided = 20.0 * torch.eye(5, dtype=torch.float64)
    assert imbalance(decided).item() == pytest.approx(-math.log(5))
    assert imbalance(decided[[0, 0, 1, 1, 1]]).item() == pytest.approx(
        0.4 * math.log(0.4) + 0.6 * math.log(0.6), abs=1e-6
    )
    assert imbalance(decided[:1].expand(5, -1)).item() == pytest.approx(0.0, abs=1e-6)


def test_mixup_is_linear_in_its_labels():
    from examples.experiments.labels.ways import mixup

    net, x, y = nn.Linear(4, 3), torch.randn(6, 4), torch.randint(3, (6,))
    torch.manual_seed(3)
    found = mixup(net, x, y, alpha=1.0)
    torch.manual_seed(3)
    share = torch.distributions.Beta(1.0, 1.0).sample().item()
    others = torch.randperm(6)
    target = share * F.one_hot(y, 3) + (1 - share) * F.one_hot(y[others], 3)
    torch.testing.assert_close(found, F.cross_entropy(net(share * x + (1 - share) * x[others]), target))


def test_every_way_trains():
    from examples.experiments.labels.runs import trained
    from examples.experiments.labels.subjects import mlp
    from examples.experiments.labels.ways import ALL
    from examples.experiments.mnist.data import load

    data = load("", "test", True)
    few = data.train_x[:100], data.train_y[:100]
    for name, way in ALL.items():
        net = trained(way, few, few, data.train_x, steps=3, seed=0, build=mlp(20))
        outputs = net(data.x[:10])
        assert outputs.shape == (10, 10), name
        assert outputs.isfinite().all(), name
        assert torch.equal(outputs, net(data.x[:10])), f"{name}: not in eval mode"


@pytest.mark.parametrize("name", ["mnist", "mnist-conv", "cancer", "wine"])
def test_every_subject_is_loaded_and_has_a_network(name):
    from examples.experiments.labels.runs import chosen_rows
    from examples.experiments.labels.subjects import SUBJECTS, with_dropout

    subject = SUBJECTS[name]
    data, validation = (subject.load("", split, True) for split in ("test", "validation"))
    assert len(data.train_x) > len(validation.train_x) or subject.things == "images"
    assert not {tuple(row.flatten().tolist()) for row in data.x} & {tuple(r.flatten().tolist()) for r in data.train_x}
    classes = len(data.train_y.unique())
    net = subject.build(data.x[0], classes)
    assert net(data.x[:7]).shape == (7, classes)
    assert torch.equal(with_dropout(net, 0.0)(data.x[:7]), net(data.x[:7]))
    dropping = with_dropout(net, 0.5)
    assert [type(b) for a, b in pairwise(dropping) if isinstance(a, nn.Dropout)] == [nn.Linear] * 2
    assert not isinstance(dropping[1], nn.Dropout)
    if subject.things == "rows":
        torch.testing.assert_close(data.train_x.mean(0), torch.zeros(data.x.shape[1]), atol=1e-4, rtol=0)
        for count in subject.counts:
            rows, held_out = chosen_rows(validation.train_y, count, 0)
            assert len(rows) == len(held_out) == count


def test_photographs_and_their_network():
    from examples.experiments.labels.subjects import HELD_OUT, SUBJECTS

    folder = os.environ.get("TORCHLIPREG_DATA", "")
    if not Path(folder, "CIFAR-10-jpeg").exists():
        pytest.skip("CIFAR-10 is not in TORCHLIPREG_DATA")
    subject = SUBJECTS["cifar"]
    data = subject.load(folder, "validation", False)
    assert len(data.x) == HELD_OUT
    assert subject.build(data.x[0], 10)(data.x[:3]).shape == (3, 10)
    assert subject.title(folder) == "CIFAR-10 (JPEG copies)"


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    from examples.experiments.labels.__main__ import main

    out = tmp_path_factory.mktemp("labels")
    arguments = ["--quick", "--out", str(out), "--ways", "plain", "tv-2-0.1", "tv-2-0.3", "early"]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        first = main(arguments)
        written = {path: path.stat().st_mtime_ns for path in out.glob("*-0.json")}
        again = main([*arguments, "--wrong", "0", "0.4"])
    return out, first, written, again


def test_records_stay_and_others_are_added(quick):
    out, first, written, again = quick
    assert len(written) == 4 * 2
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert len([*out.glob("*-wrong0.4-0.json")]) == 4 * 2
    assert [table.rows for table in again[:2]] == [table.rows for table in first]
    assert [row[0] for row in first[0].rows] == ["plain", "tv ℓ2, ε 1", "early stopping"]
    assert {path.name for path in (out / "results").iterdir()} == {"labels.json", "labels.md", "labels.png"}
    record = json.loads(next(iter(written)).read_text(encoding="utf-8"))
    assert {"settings", "seed", "made", "values"} <= record.keys()
    assert 0.3 < record["values"]["accuracy"] <= 1
    assert math.isfinite(record["values"]["nll"])


def test_the_best_member_is_chosen_by_validation_labels(quick):
    from examples.experiments.labels.__main__ import all_jobs, options_from
    from examples.experiments.labels.tables import best

    out, *_ = quick
    jobs = all_jobs(options_from(["--quick", "--out", str(out)]))
    means = {}
    for way in ("tv-2-0.1", "tv-2-0.3"):
        record = json.loads((out / f"{way}-100-0.json").read_text(encoding="utf-8"))
        means[way] = record["values"]["accuracy of validation"]
    chosen, records = best(jobs, "tv ℓ2, ε 1", 100, 0.0)
    assert means[chosen] == max(means.values())
    assert len(records) == 1
    assert best(jobs, "mixup", 100, 0.0) is None


SUBJECTS = ("mnist", "mnist-conv", "cifar", "cancer", "wine")


def published(tmp_path, of="mnist"):
    """The published records laid out as a run leaves them, and its options."""
    from examples.experiments.labels.__main__ import options_from, stem

    path = RESULTS / f"{stem(of)}.json"
    if not path.exists():
        pytest.skip("there are no published results of this experiment yet")
    content = json.loads(path.read_text(encoding="utf-8"))
    for name, record in content["records"].items():
        (tmp_path / f"{name}.json").write_text(json.dumps(record), encoding="utf-8")
    words = content["made"]["command"].split()[3:]
    return content, options_from([*words, "--out", str(tmp_path)])


@pytest.mark.parametrize("of", SUBJECTS)
def test_the_published_page_shows_the_published_records(tmp_path, of):
    from examples.experiments.common.records import read
    from examples.experiments.labels import subjects
    from examples.experiments.labels.__main__ import all_jobs, page, stem
    from examples.experiments.labels.tables import tables

    content, options = published(tmp_path, of)
    jobs = all_jobs(options)
    assert {job.path.stem for job in jobs if read(job)} == content["records"].keys(), "made by other settings"
    things = subjects.SUBJECTS[of].things
    made = page(tables(jobs, options.labels, options.wrong, things), content["made"], of)
    assert (RESULTS / f"{stem(of)}.md").read_text(encoding="utf-8") == made


RIVALS = ("plain", "weight decay", "dropout", "Gaussian noise", "label smoothing", "mixup", "Jacobian penalty")
RIVALS += ("early stopping",)
LEVEL = {  # within the spread, or behind
    "tv ℓ2, ε 1": {
        *((100, "Jacobian penalty"), (300, "Jacobian penalty"), (300, "Gaussian noise"), (10_000, "label smoothing")),
    },
    "tv ℓ∞, ε .1": {(100, "Jacobian penalty"), (10_000, "label smoothing")},
}


@pytest.mark.parametrize("count", [100, 300, 1_000, 3_000, 10_000])
@pytest.mark.parametrize("family", LEVEL)
def test_the_penalty_is_better_than_what_people_use(tmp_path, family, count):
    """Seed by seed, which have their images in common, by more than the spread."""
    from examples.experiments.labels.__main__ import all_jobs
    from examples.experiments.labels.tables import best

    jobs = all_jobs(published(tmp_path)[1])
    ours = best(jobs, family, count, 0.0)[1]
    for rival in RIVALS:
        theirs = best(jobs, rival, count, 0.0)[1]
        assert len(ours) == len(theirs) == 5
        gains = [mine["accuracy"] - other["accuracy"] for mine, other in zip(ours, theirs, strict=True)]
        better = statistics.mean(gains) > statistics.stdev(gains)
        assert better == ((count, rival) not in LEVEL[family]), (rival, gains)


@pytest.mark.parametrize("wrong", [0.2, 0.4])
def test_the_penalty_is_best_where_labels_are_wrong(tmp_path, wrong):
    from examples.experiments.labels.__main__ import all_jobs
    from examples.experiments.labels.tables import best

    jobs = all_jobs(published(tmp_path)[1])
    ours = best(jobs, "tv ℓ∞, ε .1", 1_000, wrong)[1]
    for rival in set(RIVALS) - {"weight decay"}:
        theirs = best(jobs, rival, 1_000, wrong)[1]
        assert len(ours) == len(theirs) == 3
        assert all(mine["accuracy"] > other["accuracy"] for mine, other in zip(ours, theirs, strict=True)), rival


def test_balance_keeps_unlabelled_images_from_other_classes(tmp_path):
    from examples.experiments.labels.__main__ import all_jobs
    from examples.experiments.labels.tables import best

    jobs = all_jobs(published(tmp_path)[1])
    family = "unlabelled: tv on √softmax, ℓ2"
    found = {balance: best(jobs, family + balance, 100, 0.0)[1] for balance in ("", " and balance")}
    worst = {balance: min(record["accuracy"] for record in records) for balance, records in found.items()}
    assert {len(records) for records in found.values()} == {5}
    assert worst[""] < 0.8 < 0.88 < worst[" and balance"]


def test_the_readmes_numbers_are_those_of_the_records(tmp_path):
    from examples.experiments.labels.__main__ import all_jobs
    from examples.experiments.labels.tables import best

    jobs = all_jobs(published(tmp_path)[1])

    def mean(family, wrong):
        return 100 * statistics.mean(record["accuracy"] for record in best(jobs, family, 1_000, wrong)[1])

    def numbers(ours, wrong):
        return mean(ours, wrong), max(mean(rival, wrong) for rival in RIVALS), mean("plain", wrong)

    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    right, wrong = numbers("tv ℓ2, ε 1", 0.0), numbers("tv ℓ∞, ε .1", 0.4)
    row = "`tv` has {:.1f}, the best single rival {:.1f}, plain training {:.1f}"
    assert f"Few labels, [1,000 of MNIST](docs/results/labels.md): {row.format(*right)}; " in text
    assert f"if 40 % of them are wrong, {row.format(*wrong)}." in text


def test_no_training_on_a_hundred_labels_fell_under_88_per_cent(tmp_path):
    """As docs/results/labels.md says of ten trainings with unlabelled images."""
    from examples.experiments.labels.__main__ import all_jobs
    from examples.experiments.labels.tables import best
    from examples.experiments.labels.ways import ALL

    jobs = all_jobs(published(tmp_path)[1])
    found = best(jobs, ALL["tv-unlabelled-balanced-long"].family, 100, 0.0)[1]
    assert len(found) == 10
    assert min(record["accuracy"] for record in found) > 0.88


def test_on_natural_images_it_helps_certainty_and_not_accuracy(tmp_path):
    from examples.experiments.labels.__main__ import all_jobs
    from examples.experiments.labels.tables import best

    jobs = all_jobs(published(tmp_path, "cifar")[1])

    def mean(family, number):
        found = best(jobs, family, 4_000, 0.0)[1]
        assert len(found) == 2
        return statistics.mean(record[number] for record in found)

    for ours in ("tv ℓ2, ε 1", "tv ℓ∞, ε 8/255"):
        assert abs(mean(ours, "accuracy") - mean("plain", "accuracy")) < 0.01
        assert mean(ours, "accuracy") < mean("dropout", "accuracy")
        assert mean("dropout", "nll") < mean(ours, "nll") < mean("plain", "nll") - 0.3
