"""The fine-tuning experiment: what a fine-tuning begins with and leaves alone, its quick form, its page."""

import contextlib
import io
from pathlib import Path

import pytest
import torch

EXPERIMENT = "examples.experiments.finetune.experiment"
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """A folder with narrow networks of which no two parameters are equal, as a plain training would leave them."""
    from examples.experiments.finetune.training import BASE, base_job

    folder = tmp_path_factory.mktemp("bases")
    for network in ("conv", "conv-bn"):
        torch.manual_seed(7)
        model = BASE.build(network, True)
        for buffer in model[1].buffers():
            if buffer.is_floating_point():
                buffer.add_(torch.rand_like(buffer))
        torch.save(model.state_dict(), base_job(network, 0, "", True, folder).path.with_suffix(".pt"))
    return folder


def begun(bases, network, recipe):
    from examples.experiments.common.training import begin
    from examples.experiments.finetune.experiment import experiment

    return begin(experiment(bases), network, recipe, 0, True)


def recipes(split="test"):
    from examples.experiments.finetune.experiment import experiment

    return experiment("", split).recipes


@pytest.mark.parametrize("network", ["conv", "conv-bn"])
def test_a_fine_tuning_begins_with_the_trained_network(bases, network):
    training = begun(bases, network, recipes()[network]["tv-fourth"])
    stored = torch.load(bases / f"{network}-plain-0.pt", weights_only=True)
    assert all(torch.equal(value, stored[name]) for name, value in training.model.state_dict().items())
    assert training.model.training
    assert training.epochs == 2  # a tenth of 20
    assert begun(bases, network, recipes()[network]["base"]).epochs == 0


@pytest.mark.parametrize("network", ["conv", "conv-bn"])
def test_every_recipe_trains(bases, network):
    x, y = torch.rand(16, 3, 32, 32), torch.arange(16) % 10
    for name, recipe in recipes("validation")[network].items():
        if name == "base":
            continue
        training = begun(bases, network, recipe)
        before = {key: value.clone() for key, value in training.model.state_dict().items()}
        training.batch = 8
        training.epoch(x, y)
        after = training.model.state_dict()
        assert all(value.isfinite().all() for value in after.values()), name
        changed = {key for key, value in after.items() if not torch.equal(value, before[key])}
        assert "1.0.weight" in changed or recipe.frozen, name
        assert changed, name


@pytest.mark.parametrize(("network", "kept", "trained"), [("conv", (0, 2), (4, 6)), ("conv-bn", (0, 1, 3, 4), (6, 9))])
def test_frozen_layers_stay_with_their_statistics(bases, network, kept, trained):
    from dataclasses import replace

    training = begun(bases, network, replace(recipes()[network]["tv-fourth"], frozen=2))
    before = {key: value.clone() for key, value in training.model.state_dict().items()}
    training.epoch(torch.rand(128, 3, 32, 32), torch.arange(128) % 10)
    after = training.model.state_dict()
    changed = {int(key.split(".")[1]) for key, value in after.items() if not torch.equal(value, before[key])}
    assert not changed & set(kept)
    assert set(trained) <= changed
    assert {"mean", "std"} & {key.split(".")[1] for key in after}


def test_the_weight_warms_up_over_its_share_of_the_steps(bases):
    from dataclasses import replace

    recipe = replace(recipes()["conv"]["tv-fourth"], part=0.2, warmup=0.5)
    training, weights = begun(bases, "conv", recipe), []
    training.optimizer.register_step_pre_hook(lambda *_: weights.append(training.penalty.weight))
    x, y = torch.rand(256, 3, 32, 32), torch.zeros(256, dtype=torch.long)
    for _ in range(training.epochs):
        training.epoch(x, y)
    assert len(weights) == 8
    assert weights[0] == pytest.approx(1.0)  # a tenth of 10
    assert weights[3] < 10
    assert weights[4:] == [10.0] * 4


def test_the_price_counts_the_part_and_the_steps():
    from examples.experiments.common.results import Results
    from examples.experiments.finetune.report import changes, price, tables

    network, attack = "conv", "apgd linf 0.03137254901960784"
    numbers = {
        "base": (0.6, 0.0, 0.5),
        "fgsm": (0.5, 0.2, 0.5),
        "pgd": (0.5, 0.22, 0.5),
        "tv-fourth": (0.52, 0.19, 0.51),
        "tv-fourth-2": (0.51, 0.22, 0.5),
    }
    about = {"base": (0, 1), "fgsm": (0.1, 2), "pgd": (0.1, 6), "tv-fourth": (0.1, 1.1), "tv-fourth-2": (0.2, 1.1)}
    rows = [
        {"network": network, "recipe": name, "seed": 0} | dict(zip(("clean", attack, "noise 0.1"), of, strict=True))
        for name, of in numbers.items()
    ]
    kept = {
        name: {"label": name, "part": part, "step time": {"ratio": [ratio] * 3}}
        | ({"penalty": "tv"} if "tv" in name else {})
        for name, (part, ratio) in about.items()
    }
    results = Results(rows, {"images": "test images of nothing", "recipes": {network: kept}})
    assert price(results, network, "tv-fourth-2") == pytest.approx(0.22)
    assert changes(results, network)["fgsm"].words() == "−10.0 / +20.0 / +0.0, 20 %"
    verdicts = {(row[0], row[2]): (row[3], row[5]) for row in tables(results, network)[1].rows}
    assert verdicts == {
        ("fgsm", "as many epochs"): ("tv-fourth", "1.0 points short"),
        ("fgsm", "no more time"): ("tv-fourth", "1.0 points short"),
        ("pgd", "as many epochs"): ("tv-fourth", "3.0 points short"),
        ("pgd", "no more time"): ("tv-fourth-2", "reached"),
    }


def test_a_quick_run_makes_its_page(tmp_path):
    from examples.experiments.finetune.__main__ import main

    arguments = ["--quick", "--networks", "conv", "--recipes", "base,plain,tv-fourth", "--measures", "curves"]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        results = main([*arguments, "--out", str(tmp_path)])
        written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.pt")}
        again = main([*arguments, "--out", str(tmp_path)])
    assert len(written) == 4
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert again.rows == results.rows
    clean = {row["recipe"]: row["clean"] for row in results.rows}
    assert clean["tv-fourth"] > 0.4
    assert (tmp_path / "results" / "finetune.json").exists()
    assert "tv on √softmax" in (tmp_path / "results" / "finetune.md").read_text(encoding="utf-8")


def published():
    from examples.experiments.common.results import PUBLISHED, read

    if not (PUBLISHED / "finetune.csv").exists():
        pytest.skip("there are no published results of this experiment yet")
    return PUBLISHED, read(PUBLISHED, "finetune"), read(PUBLISHED, "finetune-validation")


def test_the_published_page_shows_the_published_records():
    from examples.experiments.finetune.report import page

    folder, results, validation = published()
    assert (folder / "finetune.md").read_text(encoding="utf-8") == page(results, validation)


@pytest.mark.parametrize("split", ["test", "validation"])
def test_published_models_are_those_of_todays_recipes(split):
    from examples.experiments.common import command
    from examples.experiments.finetune.experiment import experiment

    of = experiment("", split)
    options = command.options_from(of, ["--split", split])
    today = {(job.network, job.name): job.settings() for job in command.all_jobs(of, options, ())}
    results = published()[1 if split == "test" else 2]
    for network, kept in results.meta["recipes"].items():
        for name, record in kept.items():
            stored = {word: value for word, value in record.items() if word not in ("label", "step time")}
            assert stored == today[network, name], name


def test_published_warm_up_of_the_weight_keeps_the_network():
    """What the page of settings by purpose says of it, on the test images and on those to choose settings by."""
    _, results, validation = published()
    pairs = [(results, "tv-cold", "tv"), (validation, "tv-quarter-cold", "tv-quarter-warm")]
    for of, cold, warm in [*pairs, (validation, "logits-quarter-cold", "logits-quarter-warm")]:
        (without,), (with_it,) = (of.numbers("conv", name, "clean")[:1] for name in (cold, warm))
        assert with_it > without + 0.05, cold
