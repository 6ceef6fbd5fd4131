"""The cost benchmark: its counts against PyTorch's, its instruments against what is known, its table on its page.

The count of operations is exact and does not depend on the machine, so it is what holds the step to its price: a
forward too many or a weight gradient in the ascent would show at once.
"""

import json
import re
from pathlib import Path

import pytest
import torch
from devices import DEVICE, on_gpu
from torch import nn

EXPERIMENT = "examples.experiments.cost.__main__"
EXAMPLES = Path(__file__).parents[2] / "examples"
PAGE = EXAMPLES.parent / "docs" / "results" / "cost.md"
QUICK = ["--quick", "--models", "two-layer", "--contenders", "tv", "tv, interval=8", "max, N/2 pairs", "FGSM training"]


def bench(model, x, contenders):
    from examples.experiments.cost.steps import Bench

    return Bench(model, x, torch.randint(10, (len(x),)), contenders)


@pytest.mark.parametrize("name", ["mlp", "resnet18", "vit_tiny"])
def test_operations_are_as_counted(name):
    from examples.experiments.cost.contenders import CONTENDERS, SUBJECTS, timm_model

    smaller = {"resnet18": {"channels": (16, 32, 64, 128)}, "vit_tiny": {"depth": 2}}  # the same shape, in less time
    model = timm_model(name, 32, **smaller[name]) if name in smaller else SUBJECTS[name].build(32)
    steps = bench(model, torch.rand(16, SUBJECTS[name].channels, 32, 32), CONTENDERS)
    work = steps.work()
    assert work.follows == (name == "resnet18")
    assert 0 < work.first < 1
    plain, _ = steps.operations_and_memory("plain")
    slow = () if name == "mlp" else ("tv, interval=8", "PGD-10 training", "TRADES")
    for contender, how in CONTENDERS.items():
        if contender in slow:
            continue
        operations, _ = steps.operations_and_memory(contender)
        # The count leaves out that attention multiplies two activations, and how convolutions are differentiated twice.
        tolerance = 0.05 if how.rival else 0.01
        assert operations / plain == pytest.approx(how.count(work) / work.whole, rel=tolerance), contender


def test_counts_are_those_of_the_issue_without_a_first_layer():
    from examples.experiments.cost.contenders import Work, penalised

    reused, not_reused = Work(0, follows=False, reuses=True), Work(0, follows=True, reuses=False)
    for share in (1 / 8, 1):
        for k in (1, 2):
            tv = penalised("tv", share, ascent_steps=k)
            assert tv.count(reused) / 3 == pytest.approx(1 + (2 * k + 3) * share / 3)
            assert tv.count(not_reused) / 3 == pytest.approx(1 + (2 * k + 6) * share / 3)


class Convolutions(nn.Sequential):
    """Whose activations dwarf its weights, as a large network's do at its usual image size."""

    def __init__(self, norm):
        blocks = [nn.Sequential(nn.Conv2d(c, 16, 3, padding=1), norm(16), nn.GELU()) for c in (3, 16, 16, 16)]
        super().__init__(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.Identity])
@pytest.mark.parametrize("method", ["tv", "ptv", "max", "sum"])
def test_memory_grows_by_twice_the_share_at_most(norm, method):
    from examples.experiments.cost.contenders import penalised

    shares = (1 / 8, 1 / 4, 1 / 2, 1)
    steps = bench(Convolutions(norm), torch.rand(32, 3, 16, 16), {s: penalised(method, s) for s in shares})
    # max, sum: both points of each pair, and as many data points, whose BatchNorm statistics are followed
    factor = 3 if norm is nn.BatchNorm2d and method in ("max", "sum") else 2
    _, plain = steps.operations_and_memory("plain")
    for share in shares:
        _, memory = steps.operations_and_memory(share)
        assert plain < memory <= (1 + factor * share) * plain


def test_live_bytes_sees_births_and_deaths():
    from examples.experiments.cost.measure import LiveBytes

    x = torch.ones(1000)
    with LiveBytes() as live:
        y = x + x
        assert live.now == 8000
        z = y[:10].view(2, 5)  # no bytes of its own
        assert live.now == 8000
        del y
        assert live.now == 8000
        del z
        assert live.now == 4000
        x.mul_(2)
    assert live.peak == 8000


def test_all_take_turns_in_a_rotating_order():
    from examples.experiments.common.clock import interleaved, quartiles

    order = []
    runs = {name: lambda name=name: order.append(name) for name in "abc"}
    times = interleaved(runs, "cpu", 5, 1e9, dear=["c"])
    assert "".join(order) == "abc" + "ba" + "ab" + "ab" + "bca"
    assert [t is None for t in times["c"]] == [False, True, True, True, False]
    assert None not in times["a"] + times["b"]
    assert len(interleaved(runs, "cpu", 5, 0)["a"]) == 3
    assert quartiles([1, None, 2, 3, 4, 5]) == [2, 3, 4]


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    from examples.experiments.cost import __main__ as benchmark_step

    folder = tmp_path_factory.mktemp("benchmark")
    (folder / "page.md").write_text("a\n<!-- benchmark_step -->\nold\n<!-- /benchmark_step -->\nb\n")
    arguments = [*QUICK, "--out", str(folder / "new" / "r.json"), "--page", str(folder / "page.md")]
    return benchmark_step.main(arguments), folder


def test_results_are_kept(quick):
    results, folder = quick
    kept = json.loads((folder / "new" / "r.json").read_text())
    assert kept["models"].keys() == results["models"].keys() == {"two-layer"}
    rows = {row["contender"]: row for row in kept["models"]["two-layer"]["rows"]}
    assert list(rows) == ["plain", *QUICK[4:]]
    assert rows["plain"]["time"] == 1
    for row in rows.values():
        assert 0 < row["lower quartile"] <= row["time"] <= row["upper quartile"]
        assert row["counted"] == pytest.approx(row["operations"], rel=0.01)
    assert kept["run"]["command"] == f"python -m examples.experiments.cost --models two-layer {command_tail()}"
    assert str(folder) not in json.dumps(kept)
    assert (folder / "new" / "r.png").stat().st_size > 10_000


def command_tail():
    return "--contenders tv 'tv, interval=8' 'max, N/2 pairs' 'FGSM training' --quick"


def test_page_is_written(quick):
    from examples.experiments.cost.report import page_table

    _, folder = quick
    results = json.loads((folder / "new" / "r.json").read_text())  # rounded once more, a time may round otherwise
    text = (folder / "page.md").read_text()
    assert text.startswith("a\n<!-- benchmark_step -->\n| time per step")
    assert text.endswith("\n<!-- /benchmark_step -->\nb\n")
    assert page_table(results) in text
    row = next(row for row in results["models"]["two-layer"]["rows"] if row["contender"] == "tv")
    assert f"| tv | {row['time']:.2f} ({row['counted']:.2f}) |" in text


def test_page_shows_the_results_file():
    from examples.experiments.cost.__main__ import make_parser
    from examples.experiments.cost.report import page_table

    results = json.loads((EXAMPLES / "experiments" / "results" / "benchmark_step.json").read_text(encoding="utf-8"))
    shown = re.search(r"<!-- benchmark_step -->\n(.*)\n<!-- /benchmark_step -->", PAGE.read_text("utf-8"), re.DOTALL)
    assert shown[1] == page_table(results), "run examples.experiments.cost with --out and --page again"
    assert {model["batch size"] for model in results["models"].values()} == {make_parser().get_default("batch_size")}


@on_gpu
@pytest.mark.parametrize("more", [[], ["--autocast"], ["--compile"]], ids=str)
def test_on_a_gpu(tmp_path, more):
    from examples.experiments.cost import __main__ as benchmark_step

    results = benchmark_step.main([*QUICK, "--device", DEVICE, *more, "--out", str(tmp_path / "r.json")])
    assert all(row["time"] > 0 for row in results["models"]["two-layer"]["rows"])


def test_scaling(tmp_path):
    from examples.experiments.cost import __main__ as benchmark_step

    results = benchmark_step.main(["--quick", "--scaling", "--out", str(tmp_path / "s.json")])
    assert {point["axis"] for point in results["points"]} == {"batch size", "width", "classes", "share"}
    assert (tmp_path / "s.png").stat().st_size > 10_000
