"""The MNIST experiment in its quick form, the parts that it judges by, and the documentation's tables of it."""

import contextlib
import dataclasses
import io
import itertools
import json
import re
import statistics
from pathlib import Path

import pytest
import torch

EXPERIMENT = "examples.experiments.mnist.experiment"
ROOT = Path(__file__).parents[2]
QUICK = ["--quick", "--networks", "mlp", "--recipes", "plain,tv"]


def run(out, *arguments):
    from examples.experiments.common import command
    from examples.experiments.mnist.experiment import MNIST, MODULE

    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.redirect_stderr(io.StringIO()):
        return command.main(MNIST, MODULE, [*QUICK, "--out", str(out), *arguments]), printed.getvalue()


def jobs(out, measures=None):
    from examples.experiments.common import command
    from examples.experiments.mnist.experiment import MNIST

    options = command.options_from(MNIST, [*QUICK, "--out", str(out)])
    return command.all_jobs(MNIST, options, tuple(options.measures if measures is None else measures))


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep that is stopped after its first model and then goes on: where, when the first was written, what came."""
    from examples.experiments.common import sweep

    out = tmp_path_factory.mktemp("mnist")
    with pytest.MonkeyPatch.context() as patch:
        once = iter([sweep.run])
        patch.setattr(sweep, "run", lambda job: next(once, _stop)(job))
        with pytest.raises(KeyboardInterrupt):
            run(out)
    files = [*out.glob("*.json"), *out.glob("*.pt")]
    assert {file.name for file in files} == {"mlp-plain-0.json", "mlp-plain-0.pt"}
    written = {file: file.stat().st_mtime_ns for file in files}
    return out, written, *run(out)


def _stop(job):
    raise KeyboardInterrupt


def test_a_stopped_sweep_goes_on_where_it_was(swept):
    out, written, results, _ = swept
    assert {(row["recipe"], row["seed"]) for row in results.rows} == {("plain", 0), ("tv", 0)}
    assert {file: file.stat().st_mtime_ns for file in written} == written
    assert not [*out.glob("*.json.*"), *out.glob("*.pt.*")]


def test_a_missing_measure_is_made_of_the_stored_model(swept):
    out, _, results, _ = swept
    job = next(job for job in jobs(out, ()) if job.name == "tv")
    record = json.loads(job.path.read_text())
    del record["done"]["norms"], record["values"]["operator norm l2"]
    job.path.write_text(json.dumps(record))
    weights = job.path.with_suffix(".pt").stat().st_mtime_ns
    again, _ = run(out)
    assert job.path.with_suffix(".pt").stat().st_mtime_ns == weights
    assert again.numbers("mlp", "tv", "operator norm l2") == results.numbers("mlp", "tv", "operator norm l2")


def test_a_changed_recipe_is_run_anew(swept, monkeypatch):
    from examples.experiments.mnist.recipes import RECIPES

    out, *_ = swept
    assert not any(job.missing() for job in jobs(out))
    recipe = RECIPES["mlp"]["tv"]
    changed = dataclasses.replace(recipe, penalty=recipe.penalty | {"weight": 0.5})
    monkeypatch.setitem(RECIPES["mlp"], "tv", changed)
    assert [job.name for job in jobs(out) if job.missing()] == ["tv"]


def test_tables_and_files(swept):
    out, _, results, printed = swept
    assert "accuracy on the test images of digits" in printed
    assert "report, table 3" in printed
    folder = out / "results"
    names = {"mnist_robustness.csv", "mnist_robustness.json", "mnist_mlp_strength.png", "mnist_mlp_cost.png"}
    assert {file.name for file in folder.iterdir()} == names
    for row in results.rows:
        cells = next(line.split() for line in printed.splitlines() if line.split()[:1] == [row["recipe"]])
        assert float(cells[1]) == pytest.approx(100 * row["clean"], abs=0.051)
    assert str(out) not in (folder / "mnist_robustness.json").read_text()


def test_laws_of_the_numbers(swept):
    for row in swept[2].rows:
        for attack in ("fgsm", "pgd linf", "pgd l2"):
            found = [value for name, value in row.items() if re.fullmatch(f"{attack} [0-9.]+", name)]
            assert found == sorted(found, reverse=True)
            assert len(found) > 2
        assert row["noise 0.05"] == pytest.approx(row["clean"], abs=0.05)
        assert row["pgd linf 0.1"] <= row["fgsm 0.1"] + 0.05  # of all images; PGD's are a fifth of them
    plain, tv = ({name: value for name, value in row.items()} for row in swept[2].rows)
    assert tv["pgd linf 0.1"] > plain["pgd linf 0.1"] + 0.15
    assert tv["operator norm linf"] < plain["operator norm linf"] / 1.5  # of logits; probabilities are penalised


@pytest.fixture(scope="module")
def model_and_data(swept):
    """The plain model of the sweep, on 60 images."""
    from examples.experiments.mnist.data import build, load

    model = build("mlp", quick=True).eval().requires_grad_(False)
    model.load_state_dict(torch.load(swept[0] / "mlp-plain-0.pt", weights_only=True))
    data = load("", "test", True)
    return model, data.x[:60], data.y[:60]


@pytest.mark.parametrize(("norm", "order"), [("linf", torch.inf), ("l2", 2)])
def test_pgd_fills_its_ball_and_never_leaves_it(model_and_data, norm, order):
    from examples.experiments.common.attacks import pgd

    model, x, y = model_and_data
    perturbed = pgd(model, x, y, 0.3, norm=norm)
    distance = torch.linalg.vector_norm((perturbed - x).flatten(1), order, dim=1)
    assert distance.max() <= 0.3 + 1e-6
    assert distance.median() > 0.25
    assert 0 <= perturbed.min() <= perturbed.max() <= 1


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_autoattack_is_at_least_as_strong_as_pgd(model_and_data, norm):
    from examples.experiments.common.attacks import autoattack, pgd
    from examples.experiments.common.measures import GRADIENT_ATTACKS, accuracy

    model, x, y = model_and_data
    epsilon = {"linf": 0.05, "l2": 0.3}[norm]
    perturbed = autoattack(model, x, y, epsilon, norm, GRADIENT_ATTACKS)
    judged = accuracy(model, perturbed, y)
    assert judged <= accuracy(model, pgd(model, x, y, epsilon, norm=norm), y) < accuracy(model, x, y)
    order = {"linf": torch.inf, "l2": 2}[norm]
    assert torch.linalg.vector_norm((perturbed - x).flatten(1), order, dim=1).max() <= epsilon + 1e-6


def test_no_noise_is_the_clean_image(model_and_data):
    from examples.experiments.common.measures import PERTURB

    model, x, y = model_and_data
    assert torch.equal(PERTURB["noise"](model, x, y, 0.0), x)
    assert (PERTURB["noise"](model, x, y, 0.8) - x).std() == pytest.approx(0.8, rel=0.05)  # no clamp


@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_every_recipe_trains(network):
    from examples.experiments.common.training import Training
    from examples.experiments.mnist.data import load
    from examples.experiments.mnist.experiment import MNIST
    from examples.experiments.mnist.recipes import RECIPES

    data = load("", "test", True)
    for name, recipe in RECIPES[network].items():
        training = Training(MNIST, network, recipe, seed=0, quick=True)
        before = [parameter.clone() for parameter in training.model.parameters()]
        training.step(data.train_x[:128], data.train_y[:128])
        after = list(training.model.parameters())
        assert all(p.isfinite().all() for p in after), name
        assert not any(torch.equal(p, q) for p, q in zip(before, after, strict=True)), name


def test_warm_up_ends_when_the_training_accuracy_passes():
    from examples.experiments.common.training import RUNNING, Training
    from examples.experiments.mnist.data import load
    from examples.experiments.mnist.experiment import MNIST
    from examples.experiments.mnist.recipes import RECIPES

    data = load("", "test", True)
    recipe = RECIPES["mlp"]["logits-warmup"]
    training = Training(MNIST, "mlp", recipe, seed=0, quick=True)
    for step in range(8 * RUNNING):
        weight = training.penalty.weight
        training.step(data.train_x[:64], data.train_y[:64])
        if training.penalty.weight != weight:
            assert sum(training.hits) / RUNNING > 0.9
            assert step >= RUNNING
    assert training.penalty.weight == recipe.penalty["weight"]


@pytest.mark.parametrize("quick", [False, True])
def test_the_weight_falls_in_equal_steps(quick):
    from examples.experiments.common.training import Training
    from examples.experiments.mnist.experiment import MNIST
    from examples.experiments.mnist.recipes import RECIPES

    recipe = RECIPES["mlp"]["tv"]
    training, weights = Training(MNIST, "mlp", recipe, seed=0, quick=quick), []
    training.step = lambda x, y: weights.append(training.penalty.weight)
    images = torch.zeros(3 * MNIST.batch + 1, 1)
    for _ in range(epochs := MNIST.number_of_epochs("mlp", quick)):
        training.epoch(images, images)
    assert len(weights) == 3 * epochs
    assert [new / old for old, new in itertools.pairwise(weights)] == pytest.approx(
        [weights[1] / weights[0]] * (3 * epochs - 1)
    )
    assert weights[0] == recipe.penalty["weight"]
    assert training.penalty.weight == pytest.approx(recipe.penalty["weight"] * recipe.weight_fall)


def test_the_points_closest_to_a_decision_are_penalised():
    from examples.experiments.common.training import Training
    from examples.experiments.mnist.data import load
    from examples.experiments.mnist.experiment import MNIST
    from examples.experiments.mnist.recipes import RECIPES

    data, recipe = load("", "test", True), RECIPES["mlp"]["tv"]
    recipe = dataclasses.replace(recipe, penalty=recipe.penalty | {"num_pairs": 20})
    training = Training(MNIST, "mlp", recipe, seed=0, quick=True)
    x = data.train_x[:64]
    first, second = training.model(x).topk(2).values.unbind(1)
    training.step(x, data.train_y[:64])
    chosen = x[(first - second).argsort()[:20]]
    assert torch.equal(training.penalty.pairs.x, chosen)
    assert training.penalty.reuses_outputs  # those of the same rows


def test_a_recipe_that_would_ignore_a_setting_is_refused():
    from examples.experiments.common.recipes import Recipe, flip
    from examples.experiments.common.rivals import fgsm_training
    from examples.experiments.mnist.recipes import EPSILON, WARMUP

    with pytest.raises(ValueError, match="`penalty` for weight_fall"):
        Recipe("plain", weight_fall=0.1)
    with pytest.raises(ValueError, match=r"plain loss.*discrepancy"):
        flip("tv + FGSM training", "tv", 0.1, fgsm_training, EPSILON, discrepancy=WARMUP)


def test_settings_name_the_defaults_of_the_loss():
    from examples.experiments.mnist.recipes import RECIPES

    assert RECIPES["mlp"]["trades"].settings() == {"loss": "trades(epsilon=0.1, beta=6.0, steps=10)"}


def test_missing_data_is_told(tmp_path, monkeypatch):
    from torchvision.datasets import MNIST

    from examples.experiments.mnist.data import load

    monkeypatch.setattr(MNIST, "mirrors", ["file:///nowhere/"])
    with (
        contextlib.redirect_stdout(io.StringIO()),
        pytest.raises(FileNotFoundError, match=r"--data .*TORCHLIPREG_DATA"),
    ):
        load(str(tmp_path), "test", False)


def test_validation_images_are_neither_trained_on_nor_the_test_images():
    from examples.experiments.mnist.data import load

    validation, test = load("", "validation", True), load("", "test", True)
    assert torch.equal(validation.train_x, test.train_x)
    assert not (validation.x[:, None] == validation.train_x[None]).flatten(2).all(2).any()
    assert not (validation.x[:, None] == test.x[None]).flatten(2).all(2).any()


@pytest.mark.parametrize(("page", "places"), [("mnist", {"made", "mlp", "conv"}), ("settings", {"settings"})])
def test_pages_show_the_published_results(page, places):
    from examples.experiments.common.pages import contents_of, filled, marked
    from examples.experiments.common.results import PUBLISHED, read
    from examples.experiments.mnist.experiment import MNIST
    from examples.experiments.mnist.settings import contents as settings_contents

    text = (ROOT / "docs" / "results" / f"{page}.md").read_text(encoding="utf-8")
    contents = contents_of(MNIST, read(PUBLISHED, "mnist_robustness"))
    contents |= settings_contents(read(PUBLISHED, "mnist_settings"))
    assert {match[1] for match in marked("mnist").findall(text)} == places <= contents.keys()
    assert filled(text, "mnist", contents) == text, "run both commands of the MNIST experiment with --page"


def check_published(name, jobs):
    """Each published model's settings are today's, word by word: they decide the fingerprint that finds it again."""
    from examples.experiments.common.recipes import as_first_recorded
    from examples.experiments.common.results import PUBLISHED, read

    published = read(PUBLISHED, name).meta["recipes"]
    today = {(job.network, job.name): as_first_recorded(job.settings(), job.recipe) for job in jobs}
    for network, recipes in published.items():
        for name, record in recipes.items():
            stored = {word: value for word, value in record.items() if word not in ("label", "step time")}
            assert stored == today[network, name], name


def test_published_models_are_those_of_todays_recipes(tmp_path):
    from examples.experiments.common import command
    from examples.experiments.mnist.experiment import MNIST

    options = command.options_from(MNIST, ["--out", str(tmp_path)])
    check_published("mnist_robustness", command.all_jobs(MNIST, options, ()))


def test_published_settings_are_those_of_todays_study(tmp_path):
    from examples.experiments.mnist.settings import all_jobs

    check_published("mnist_settings", all_jobs("", tmp_path))


COLUMNS = ("fgsm 0.1", "pgd linf 0.1", "pgd linf 0.2", "apgd linf 0.1", "pgd l2 1.0", "pgd l2 2.0", "noise 0.8")


@pytest.mark.parametrize(
    ("network", "ours", "theirs", "columns", "share"),
    [
        ("mlp", "tv", "fgsm", [*COLUMNS, "autoattack linf 0.1"], None),
        ("mlp", "tv", "pgd", [*COLUMNS, "autoattack linf 0.1"], 1 / 3),
        ("mlp", "tv-strong", "trades", [*COLUMNS, "autoattack linf 0.1"], 1 / 3),
        ("mlp", "tv", "differences-light", ["fgsm 0.1", "pgd linf 0.1", "pgd linf 0.2", "apgd linf 0.1"], None),
        ("mlp", "tv", "differences-squared", ["pgd linf 0.1", "apgd linf 0.1"], None),
        ("conv", "tv", "fgsm", COLUMNS, None),
        ("conv", "tv", "pgd", COLUMNS, 1 / 4),
        ("conv", "tv", "trades", ["fgsm 0.1", "pgd linf 0.2", "pgd l2 1.0", "pgd l2 2.0", "noise 0.8"], 1 / 3),
    ],
)
def test_the_pages_claims_hold_in_the_published_results(network, ours, theirs, columns, share):
    from examples.experiments.common.results import PUBLISHED, read

    results = read(PUBLISHED, "mnist_robustness")
    for column in ("clean", *columns):
        mine, other = (results.numbers(network, recipe, column) for recipe in (ours, theirs))
        assert len(mine) == len(other) == 3, column
        assert statistics.mean(mine) > statistics.mean(other), column
    if share is not None:
        assert results.step_time(network, ours)[1] < share * results.step_time(network, theirs)[1]


def test_tv_keeps_the_clean_accuracy_of_plain_training():
    from examples.experiments.common.results import PUBLISHED, read

    clean = {
        name: read(PUBLISHED, "mnist_robustness").numbers("mlp", name, "clean") for name in ("plain", "tv", "tv-whole")
    }
    assert all(len(values) >= 3 for values in clean.values())
    assert min(statistics.mean(clean["tv"]), statistics.mean(clean["tv-whole"])) >= statistics.mean(clean["plain"])
