"""The CIFAR-10 experiment: its rivals against plain transcriptions, its quick form, its page."""

import contextlib
import io
import json
import os
import shutil
import statistics
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from devices import DEVICE, on_gpu
from torch import nn

EXPERIMENT = "examples.experiments.cifar.experiment"
ROOT = Path(__file__).parents[2]
EPSILON = 8 / 255


@pytest.fixture
def problem():
    """A smooth network, and images of which some lie at the edge of the range."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 4))
    x = torch.rand(24, 3, 2, 2)
    x[:4], x[4:8] = 0.0, 1.0
    return net, x, torch.randint(4, (24,))


def slope(net, z, y):
    z = z.clone().requires_grad_()
    F.cross_entropy(net(z), y).backward()
    net.zero_grad()
    return z.grad


def losses(net, z, y):
    return F.cross_entropy(net(z), y, reduction="none")


def test_fgsm_with_a_random_start_is_wong_and_others(problem):
    from examples.experiments.common.fast import random_start

    net, x, y = problem
    torch.manual_seed(1)
    found = random_start(net, x, y, EPSILON)
    torch.manual_seed(1)
    delta = torch.empty_like(x).copy_(EPSILON * (2 * torch.rand_like(x) - 1))
    delta = (x + delta).clamp(0, 1) - x
    delta = (delta + 1.25 * EPSILON * slope(net, x + delta, y).sign()).clamp(-EPSILON, EPSILON)
    torch.testing.assert_close(found, (x + delta).clamp(0, 1), rtol=0, atol=1e-6)
    assert (found - x).abs().max() <= EPSILON + 1e-6
    assert losses(net, found, y).mean() > losses(net, x, y).mean()
    assert not any(p.grad is not None and p.grad.any() for p in net.parameters())


@pytest.mark.parametrize(("share", "moved"), [(1.0, 24), (0.5, 12), (0.25, 6)])
def test_fgsm_on_a_part_of_the_batch_leaves_the_rest(problem, share, moved):
    from examples.experiments.common.fast import fgsm_random_start

    net, x, y = problem
    seen = []
    handle = net.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    fgsm_random_start(net, x, y, EPSILON, share=share)
    handle.remove()
    assert len(seen[0]) == moved, "the gradient is taken of the part alone, which is what makes it cheap"
    differ = (seen[-1] != x).flatten(1).any(1)
    assert differ[:moved].all()
    assert not differ[moved:].any()


def test_n_fgsm_leaves_the_cube(problem):
    from examples.experiments.common.fast import noisy_step

    net, x, y = problem
    torch.manual_seed(1)
    found = noisy_step(net, x, y, EPSILON)
    torch.manual_seed(1)
    start = x + 2 * EPSILON * (2 * torch.rand_like(x) - 1)
    expected = (start + EPSILON * slope(net, start, y).sign()).clamp(0, 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert EPSILON * 1.5 < (found - x).abs().max() <= 3 * EPSILON + 1e-6


def test_trades_is_its_formula(problem):
    from examples.experiments.common.rivals import trades

    net, x, y = problem
    torch.manual_seed(1)
    found = trades(net, x, y, EPSILON, beta=3.0, steps=2)
    torch.manual_seed(1)
    clean = net(x).softmax(1)
    z = x + 1e-3 * torch.randn_like(x)
    for _ in range(2):
        z = z.detach().requires_grad_()
        divergence = (clean.detach() * (clean.detach().log() - net(z).log_softmax(1))).sum()
        (gradient,) = torch.autograd.grad(divergence, z)
        z = (x + (z + EPSILON / 4 * gradient.sign() - x).clamp(-EPSILON, EPSILON)).clamp(0, 1)
    divergence = (clean * (clean.log() - net(z.detach()).log_softmax(1))).sum(1).mean()
    torch.testing.assert_close(found, F.cross_entropy(net(x), y) + 3.0 * divergence, rtol=1e-4, atol=1e-6)


def test_prior_guided_fgsm_starts_where_the_last_visit_led(problem):
    from examples.experiments.common.fast import Memory, prior_guided

    net, x, y = problem
    memory, momentum = Memory(), torch.zeros_like(x)
    torch.manual_seed(1)
    delta = EPSILON * (2 * torch.rand_like(x) - 1).sign()
    rows = torch.randperm(40)[:24]
    torch.manual_seed(1)
    for _ in range(3):
        memory.rows = rows
        found = prior_guided(net, x, y, EPSILON, memory=memory)
        variable = delta.clone().requires_grad_()
        smoothed = {"label_smoothing": 0.4 * 10 / 9}
        (gradient,) = torch.autograd.grad(F.cross_entropy(net(x + variable), y, **smoothed), variable)
        momentum = 0.3 * momentum + gradient / gradient.abs().sum()
        moved = (x + (delta + EPSILON * gradient.sign()).clamp(-EPSILON, EPSILON)).clamp(0, 1)
        between = 10 * (net(moved) - net(x + delta)).square().mean()
        torch.testing.assert_close(found, F.cross_entropy(net(moved), y, **smoothed) + between, rtol=1e-4, atol=1e-6)
        delta = (x + (delta + EPSILON * momentum.sign()).clamp(-EPSILON, EPSILON)).clamp(0, 1) - x


def test_a_memory_gives_each_image_its_own():
    from examples.experiments.common.fast import Memory

    memory, like = Memory(), torch.zeros(3, 2)
    memory.rows = torch.tensor([7, 2, 5])
    memory.write("mark", torch.tensor([[7.0, 7], [2, 2], [5, 5]]))
    for row in (3, 9):  # one between those that were seen, one past them
        memory.rows = torch.tensor([2, row, 7])
        assert memory.read("mark", like, torch.ones_like).tolist() == [[2, 2], [1, 1], [7, 7]]


def test_images_are_shifted_and_mirrored():
    from examples.experiments.cifar.training import augmented

    x = torch.rand(64, 3, 8, 8)
    found = augmented(x, torch.Generator().manual_seed(0), shift=2)
    padded = F.pad(x, [2] * 4, mode="replicate")
    seen = set()
    for image, source in zip(found, padded, strict=True):
        views = {
            (down, right, flip): torch.equal(image, view.flip(2) if flip else view)
            for down in range(5)
            for right in range(5)
            for flip in (False, True)
            for view in [source[:, down : down + 8, right : right + 8]]
        }
        matching = [name for name, same in views.items() if same]
        assert len(matching) == 1
        seen.add(matching[0])
    assert len(seen) > 25
    again = augmented(x, torch.Generator().manual_seed(0), shift=2)
    assert torch.equal(found, again)


@pytest.mark.parametrize("network", ["conv", "conv-bn", "resnet", "vit"])
def test_recipes_train(network):
    from examples.experiments.cifar.data import load
    from examples.experiments.cifar.experiment import SCALES
    from examples.experiments.cifar.recipes import ALL, DECISIVE
    from examples.experiments.common.training import begin

    data = load("", "test", True)
    for name, recipe in (ALL if network == "conv" else DECISIVE).items():
        training = begin(SCALES["cores"], network, recipe, 0, True)
        before = [parameter.clone() for parameter in training.model.parameters()]
        training.step(data.train_x[:128], data.train_y[:128])
        after = list(training.model.parameters())
        assert all(p.isfinite().all() for p in after), name
        assert any(not torch.equal(p, q) for p, q in zip(before, after, strict=True)), name


def test_the_learning_rate_makes_one_cycle():
    from examples.experiments.cifar.experiment import SCALES
    from examples.experiments.common.recipes import Recipe
    from examples.experiments.common.training import begin

    experiment = SCALES["cores"]
    training = begin(experiment, "conv", Recipe("plain"), 0, True)
    rates = []
    training.optimizer.register_step_pre_hook(lambda adam, *_: rates.append(adam.param_groups[0]["lr"]))
    x, y = torch.rand(256, 3, 32, 32), torch.zeros(256, dtype=torch.long)
    for _ in range(training.epochs):
        training.epoch(x, y)
    assert max(rates) == pytest.approx(experiment.learning_rate)
    assert rates[0] < max(rates) / 10
    assert rates[-1] < max(rates) / 1_000
    assert len(rates) == 2 * training.epochs


QUICK = ["--quick", "--networks", "conv", "--recipes", "plain,tv-quarter"]


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """A quick run, and the same again: where, results, when the models were written, what the second one said."""
    from examples.experiments.cifar.__main__ import main

    out = tmp_path_factory.mktemp("cifar")
    arguments = [*QUICK, "--measures", "curves,corruptions"]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        results = main([*arguments, "--out", str(out)])
        written = {path: path.stat().st_mtime_ns for path in out.glob("conv-*")}
        again = main([*arguments, "--out", str(out)])
    return out, results, written, again


def test_a_quick_run_keeps_its_models(quick):
    out, results, written, again = quick
    assert {path.name for path in written} == {
        f"conv-{name}-0.{end}" for name in ("plain", "tv-quarter") for end in ("json", "pt")
    }
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert again.rows == results.rows
    for row in results.rows:
        assert row["clean"] > 0.3
        assert 0 < row["corrupted"] < 1
        assert row["noise 0.05"] == pytest.approx(row["clean"], abs=0.1)
    assert "tv on √softmax, a quarter (20)" in (out / "results" / "cifar_robustness.md").read_text(encoding="utf-8")


def test_a_record_says_what_made_it(quick):
    out, *_ = quick
    record = json.loads((out / "conv-tv-quarter-0.json").read_text(encoding="utf-8"))
    assert record["seed"] == 0
    assert record["device"] == "cpu"
    assert record["settings"]["schedule"] == "one cycle"
    assert record["made"]["command"].startswith("python -m examples.experiments.cifar --quick")
    assert {"torch", "torchlipreg", "python"} <= record["made"]["versions"].keys()
    assert str(out) not in json.dumps(record)


def test_a_collection_keeps_what_was_collected_before(quick, tmp_path):
    from examples.experiments.cifar.__main__ import main

    out, results, *_ = quick
    collected = tmp_path / "results"
    shutil.copytree(out / "results", collected)
    arguments = [*QUICK, "--collect", "--out", str(tmp_path / "without records"), "--results", str(collected)]
    with contextlib.redirect_stdout(io.StringIO()):
        kept = main(arguments)
    assert kept.rows == results.rows
    assert kept.meta["recipes"] == results.meta["recipes"]
    about = json.loads((collected / "cifar_robustness.json").read_text(encoding="utf-8"))
    about["recipes"]["conv"]["tv-quarter"]["epochs"] += 1  # as if today's recipe were another one
    (collected / "cifar_robustness.json").write_text(json.dumps(about), encoding="utf-8")
    with contextlib.redirect_stdout(io.StringIO()):
        assert [row["recipe"] for row in main(arguments).rows] == ["plain"]


@on_gpu
def test_a_quick_run_on_a_gpu(tmp_path):
    from examples.experiments.cifar.__main__ import main

    arguments = ["--quick", "--device", DEVICE, "--scale", "gpu", "--networks", "conv-bn", "--out", str(tmp_path)]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        results = main(arguments)
    assert len(results.rows) == 4
    assert all(0 <= row["apgd linf 0.03137254901960784"] <= row["clean"] + 0.1 for row in results.rows)


def test_corruptions_change_images_and_keep_their_range():
    from examples.experiments.cifar.data import load
    from examples.experiments.cifar.measures import CORRUPTIONS

    x = load("", "test", True).x[:8]
    for name, corrupt in CORRUPTIONS.items():
        found = corrupt(x)
        assert found.shape == x.shape, name
        assert -1e-6 <= found.min() <= found.max() <= 1 + 1e-6, name
        assert 0.003 < (found - x).abs().mean() < 0.5, name


def test_goals_say_what_is_lacking():
    from examples.experiments.cifar.goals import Goal
    from examples.experiments.cifar.judge import Point

    plain, fgsm, ours = (Point(clean, robust, 1.0, 0, 0, 1) for clean, robust in ((60, 0), (50, 20), (52, 18.5)))
    assert Goal("", 1.5, "fgsm").lacking(ours, fgsm, plain) == pytest.approx(1.5)
    assert Goal("", 1.5, "fgsm", share=0.9).lacking(ours, fgsm, plain) == 0
    assert Goal("", 1.5, "fgsm").lacking(plain, fgsm, plain) == pytest.approx(20)


@pytest.mark.slow
def test_validation_images_are_neither_trained_on_nor_the_test_images():
    from examples.experiments.cifar.data import load

    folder = os.environ.get("TORCHLIPREG_DATA", "")
    if not Path(folder, "CIFAR-10-jpeg").exists() and not Path(folder, "cifar-10-batches-py").exists():
        pytest.skip("CIFAR-10 is not in TORCHLIPREG_DATA")
    validation, test = load(folder, "validation", False), load(folder, "test", False)
    assert len(validation.train_x) == 45_000
    assert len(validation.x) == 5_000
    assert torch.equal(validation.train_x, test.train_x)
    marks = [
        set(part.flatten(1).double().sum(1).tolist()) for part in (validation.train_x[:5_000], validation.x, test.x)
    ]
    assert len(marks[0] & marks[1]) < 50
    assert len(marks[1] & marks[2]) < 50


def published():
    from examples.experiments.common.results import PUBLISHED, read

    if not (PUBLISHED / "cifar_robustness.csv").exists():
        pytest.skip("there are no published results of this experiment yet")
    return PUBLISHED, read(PUBLISHED, "cifar_robustness")


def test_the_published_page_shows_the_published_records():
    from examples.experiments.cifar.experiment import SCALES
    from examples.experiments.cifar.page import page

    folder, results = published()
    assert (folder / "cifar_robustness.md").read_text(encoding="utf-8") == page(SCALES["cores"], results)


def test_published_models_are_those_of_todays_recipes():
    from examples.experiments.cifar.experiment import SCALES
    from examples.experiments.common import command

    _, results = published()
    options = command.options_from(SCALES["cores"], [])
    jobs = command.all_jobs(SCALES["cores"], options, ())
    today = {(job.network, job.name): job.settings() for job in jobs}
    for network, recipes in results.meta["recipes"].items():
        for name, record in recipes.items():
            stored = {word: value for word, value in record.items() if word not in ("label", "step time")}
            assert stored == today[network, name], name


def test_where_single_step_training_breaks_down_the_penalty_does_not():
    """As README and docs/results/cifar.md say: seed by seed on the ResNet, and at 16/255 on the conv net."""
    from examples.experiments.cifar.measures import EPSILON

    _, results = published()
    text = (ROOT / "docs" / "results" / "cifar.md").read_text(encoding="utf-8")
    found = {}
    for name in ("fgsm", "n-fgsm", "tv-quarter-10", "tv-fourth"):
        found[name] = {row["seed"]: row for row in results.of("resnet", name)}
        rows = [found[name][seed] for seed in range(3)]
        of_seeds = " | ".join(f"{100 * row[f'autoattack linf {EPSILON}']:.1f}" for row in rows)
        clean, price = 100 * statistics.mean(row["clean"] for row in rows), results.step_time("resnet", name)[1]
        assert f" | {of_seeds} | {clean:.1f} | {price:.1f} × |" in text, name
    ours, fgsm, noisy = found["tv-quarter-10"], found["fgsm"], found["n-fgsm"]
    assert all(ours[seed]["clean"] > max(fgsm[seed]["clean"], noisy[seed]["clean"]) for seed in range(3))
    assert [round(100 * noisy[seed][f"apgd linf {EPSILON}"], 1) for seed in (0, 1)] == [22.0, 3.3]
    sound = f"at {100 * fgsm[2]['clean']:.1f} per cent clean and not {100 * ours[2]['clean']:.1f}"
    assert sound in " ".join(text.split())
    at_16 = {name: results.of("conv", f"{name}-16")[0] for name in ("fgsm", "n-fgsm", "tv-quarter")}
    assert at_16["fgsm"]["clean"] == at_16["n-fgsm"]["clean"] == 0.1
    assert at_16["tv-quarter"]["clean"] == 0.434
    assert at_16["tv-quarter"][f"pgd linf {2 * EPSILON}"] == 0.14


def test_with_batchnorm_fgsm_is_ahead():
    """As docs/results/cifar.md and its index say."""
    _, results = published()
    names = ("plain", "fgsm", "n-fgsm", "tv-quarter-10", "tv-fourth")
    mean = {name: means(results, name, "conv-bn") for name in names}
    (fgsm, clean), (ours, our_clean) = mean["fgsm"], mean["tv-quarter-10"]
    part = 100 * (mean["tv-fourth"][0] - mean["plain"][0]) / (fgsm - mean["plain"][0])
    said = {
        "cifar": f"it has {fgsm:.1f}, N-FGSM {mean['n-fgsm'][0]:.1f}; `tv` on a quarter (10) has {ours:.1f}, "
        f"at {our_clean - clean:.1f} points more clean accuracy",
        "index": f"FGSM training has {fgsm:.1f} per cent under AutoAttack at 8/255, `tv` on a quarter of each batch "
        f"{ours:.1f}, at the same price and {our_clean - clean:.1f} points more clean accuracy",
    }
    pages = {page: (ROOT / "docs" / "results" / f"{page}.md").read_text(encoding="utf-8") for page in said}
    texts = {page: " ".join(text.split()) for page, text in pages.items()}
    assert all(said[page] in text for page, text in texts.items())
    assert f"it has {part:.0f} per cent of FGSM's gain" in texts["cifar"]


def by_autoattack(results, name, network="conv"):
    """Numbers under AutoAttack and clean, in per cent, by seed."""
    from examples.experiments.cifar.measures import EPSILON

    robust = f"autoattack linf {EPSILON}"
    rows = {row["seed"]: row for row in results.of(network, name) if robust in row}
    return {seed: (100 * row[robust], 100 * row["clean"]) for seed, row in rows.items()}


JUDGED = (
    "fgsm",
    "fgsm-6",
    "n-fgsm",
    "pgd",
    "trades",
    "tv-fourth",
    "tv-surest-fourth",
    "tv-quarter-10",
    "tv-surest",
    "tv-quarter",
    "tv-quarter-30",
    "tv-wide-quarter",
    "tv-half-alternate",
    "tv-whole-17",
    "tv-whole",
    "tv-whole-30",
    "tv-whole-35",
)


def test_the_table_of_all_of_autoattack_is_that_of_the_records():
    from examples.experiments.common.tables import spread

    _, results = published()
    text = (ROOT / "docs" / "results" / "cifar.md").read_text(encoding="utf-8")
    for name in JUDGED:
        found = by_autoattack(results, name)
        robust, clean = zip(*found.values(), strict=True)
        price = f"{results.step_time('conv', name)[1]:.1f} ×"
        row = f"| {results.label('conv', name)} | {spread(clean, 1)} | {spread(robust, 1)} | {price} |"
        assert row in text, row


def means(results, name, network="conv"):
    """Mean under AutoAttack and mean clean, in per cent."""
    found = by_autoattack(results, name, network)
    assert found.keys() == {0, 1, 2}
    return tuple(map(statistics.mean, zip(*found.values(), strict=True)))


def test_on_a_part_of_the_batch_it_lies_on_fgsms_front_at_a_lower_price():
    """As README and docs/results/cifar.md say."""
    _, results = published()
    (fgsm, its_clean), (gentle, gentle_clean) = means(results, "fgsm"), means(results, "fgsm-6")
    (noisy, noisy_clean), (plain, _) = means(results, "n-fgsm"), means(results, "plain")
    (ours, clean), (light, light_clean) = means(results, "tv-quarter"), means(results, "tv-quarter-10")
    assert clean < gentle_clean < light_clean
    share = (gentle_clean - clean) / (light_clean - clean)
    assert abs(ours + share * (light - ours) - gentle) < 0.2, "level at the clean accuracy of FGSM with ε 6"
    assert fgsm - ours == pytest.approx(0.6, abs=0.1)
    assert clean - its_clean == pytest.approx(2.5, abs=0.1)
    wide, wide_clean = means(results, "tv-wide-quarter")
    assert abs(wide - ours) < 0.5
    assert -1 < wide_clean - clean < 0, "on the same front"
    (half, half_clean), (heavy, heavy_clean) = means(results, "tv-half-alternate"), means(results, "tv-quarter-30")
    assert 1.3 < half_clean - its_clean < 1.7
    assert fgsm - half == pytest.approx(0.2, abs=0.05)
    assert abs(noisy - half) < 0.15
    assert half_clean - noisy_clean == pytest.approx(4, abs=0.2)
    assert abs(heavy - half) < 0.15
    assert 0.1 < fgsm - heavy < 0.5, "less than FGSM, where both have its clean accuracy"
    assert 0 < heavy_clean - its_clean < 0.6
    (surest, surest_clean) = means(results, "tv-surest")
    assert surest < light, "no better than random points"
    assert surest_clean < light_clean
    fourth, fourth_clean = means(results, "tv-fourth")
    assert round(100 * (fourth - plain) / (fgsm - plain)) == 89
    assert abs(fourth_clean - gentle_clean) < 0.8
    assert gentle - fourth == pytest.approx(1.7, abs=0.1)
    names = ("fgsm", "tv-quarter", "tv-quarter-10", "tv-half-alternate", "tv-fourth")
    prices = [results.step_time("conv", name)[1] for name in names]
    assert [f"{price:.1f}" for price in prices] == ["1.8", "1.6", "1.6", "1.5", "1.2"]


def test_on_the_whole_batch_it_is_level_with_attacks_of_many_steps():
    """As README and docs/results/cifar.md say, at less than half their price."""
    _, results = published()
    (trades, its_clean), (whole, clean) = (means(results, name) for name in ("trades", "tv-whole"))
    assert whole - trades == pytest.approx(0.4, abs=0.05)
    assert 0.3 < its_clean - clean < 0.8
    (pgd, of_pgd), (whole, clean), (heavy, of_heavy) = (means(results, n) for n in ("pgd", "tv-whole", "tv-whole-30"))
    assert pgd - whole == pytest.approx(0.4, abs=0.1)
    assert clean - of_pgd > 5.5
    assert abs(heavy - pgd) < 0.15
    assert 4 < of_heavy - of_pgd < 4.6
    (light, of_light), (heaviest, of_heaviest) = means(results, "tv-whole-17"), means(results, "tv-whole-35")
    assert 0 <= light - trades < 0.15
    assert 0 <= of_light - its_clean < 0.1
    assert 0.1 < heaviest - pgd < 0.25
    assert 3 < of_heaviest - of_pgd < 3.4
    ours = ("tv-whole-17", "tv-whole", "tv-whole-30", "tv-whole-35")
    price = {name: results.step_time("conv", name)[1] for name in ("trades", "pgd", *ours)}
    assert max(price[name] for name in ours) < min(price["trades"], price["pgd"]) / 2
    assert {round(price[name], 1) for name in ours} == {2.9}


def test_under_other_strengths_it_is_ahead_but_of_trades():
    """As docs/results/cifar.md says, with the ends of both ranges."""
    _, results = published()
    ours, theirs = ("tv-quarter", "tv-half-alternate", "tv-whole"), ("fgsm", "n-fgsm", "pgd")
    text = " ".join((ROOT / "docs" / "results" / "cifar.md").read_text(encoding="utf-8").split())
    for said, bound in (("2/255", f"linf {2 / 255}"), ("4/255", f"linf {4 / 255}"), (".5 in ℓ2", "l2 0.5")):
        low, high, below, above = _ends(results, ours, bound) + _ends(results, theirs, bound)
        assert above < low
        assert abs(_ends(results, ("trades",), bound)[0] - high) < 1.3
        assert f"at {said} {low:.1f} to {high:.1f} beside {below:.1f} to {above:.1f}" in text
    (low, high), (pgd, _) = _ends(results, ours, f"linf {16 / 255}"), _ends(results, ("pgd",), f"linf {16 / 255}")
    assert f"At 16/255 PGD-7 is ahead, {pgd:.1f} beside {low:.1f} to {high:.1f}." in text


def _ends(results, names, bound):
    """The least and the greatest mean under the gradient attacks, in per cent."""
    found = [results.numbers("conv", name, f"apgd {bound}") for name in names]
    assert all(len(numbers) == 3 for numbers in found)
    means = [100 * statistics.mean(numbers) for numbers in found]
    return min(means), max(means)


def test_other_strengths_are_shown_of_the_models_that_met_them():
    from examples.experiments.cifar.tables import NOTES, strengths
    from examples.experiments.common.results import Results

    of = {"network": "conv", "seed": 0, "clean": 0.5, "apgd linf 0.03137254901960784": 0.2}
    rows = [
        of | {"recipe": "plain", "autoattack linf 0.03137254901960784": 0.1},
        of | {"recipe": "fgsm", "apgd linf 0.00784313725490196": 0.4, "autoattack linf 0.03137254901960784": 0.1},
    ]
    recipes = {name: {"label": name} for name in ("plain", "fgsm")}
    table = strengths(Results(rows, {"images": "test images of a set", "recipes": {"conv": recipes}}), "conv", NOTES)
    assert table.heading == ["training", "clean", "APGD ∞ 2", "APGD ∞ 8"]
    assert table.rows == [["fgsm", "50.0", "40.0", "20.0"]]
