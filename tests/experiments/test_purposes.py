"""The page "Settings by purpose": it shows the records, its lines run, and they are those of the recipes measured."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

EXPERIMENT = "examples.experiments.purposes.__main__"
ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "purposes.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.fixture
def namespace():
    """What a user's script would hold."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.ReLU(), nn.Linear(16, 10))
    x, y = torch.rand(256, 3, 4, 4), torch.randint(10, (256,))
    data = torch.utils.data.TensorDataset(x, y)
    return {
        "torch": torch,
        "model": model,
        "x": x[:128],
        "y": y[:128],
        "loader": torch.utils.data.DataLoader(data, batch_size=128),
        "unlabelled_loader": torch.utils.data.DataLoader(x, batch_size=128),
        "criterion": nn.CrossEntropyLoss(),
        "optimizer": torch.optim.Adam(model.parameters()),
        "epochs": 2,
    }


def lines():
    from examples.experiments.purposes.sections import SECTIONS

    return [line for make in SECTIONS.values() for line in make()]


def test_the_page_shows_the_records():
    from examples.experiments.purposes.__main__ import page

    assert PAGE.read_text(encoding="utf-8") == page(), "run `python -m examples.experiments.purposes`"


def test_every_line_runs_in_the_loop(namespace):
    loop, *codes = BLOCKS
    assert codes == [f"{line.code}\n" for line in lines()]
    for code in codes:
        of = dict(namespace)
        exec(compile(code, "docs/purposes.md", "exec"), of)
        before = [parameter.clone() for parameter in of["model"].parameters()]
        exec(compile(loop, "docs/purposes.md", "exec"), of)
        of["loss"].backward()
        of["optimizer"].step()
        assert of["loss"].isfinite()
        after = list(of["model"].parameters())
        assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True)), code


def test_every_line_is_the_recipe_that_was_measured(namespace):
    """Its settings, and its weight in units of bare quotients."""
    from torchlipreg import LipschitzPenalty

    def told(penalty):
        of = penalty.settings.arguments()
        of["weight"] = penalty.weight * of["scale"] ** of["exponent"]
        return {name: value for name, value in of.items() if name not in ("scale", "seed")}

    for line in lines():
        of = dict(namespace)
        exec(
            "\n".join(line.code.splitlines()[: line.code.count("\n") + 1 - line.more.count("\n") - bool(line.more)]), of
        )
        expected = told(LipschitzPenalty(**line.penalty))
        found = told(of["penalty"])
        assert found.pop("weight") == pytest.approx(expected.pop("weight"), rel=1e-9), line.what
        assert found == expected, line.what


def test_a_scale_of_one_goes_into_the_weight():
    from examples.experiments.purposes.lines import line

    of = {"method": "tv", "weight": 3e-4, "radius": 0.1, "input_norm": 2, "scale": 1, "exponent": 2}
    assert line(of) == 'penalty = LipschitzPenalty("tv", weight=0.03, radius=0.1, input_norm=2)'
    of |= {"exponent": 1, "radius": 8 / 255}
    assert line(of) == 'penalty = LipschitzPenalty("tv", weight=0.0095625, radius=8 / 255, input_norm=2, exponent=1)'


def test_what_the_notes_say_of_the_records():
    """No gain for the regression: within the spread, at the default weight and at ten times it."""
    import json
    import statistics

    path = ROOT / "examples" / "experiments" / "results" / "transfer-tv.json"
    records = json.loads(path.read_text(encoding="utf-8"))
    of = [[r["clean"] for n, r in records.items() if n.startswith(f"diabetes-mlp-tv-{i}-")] for i in range(4)]
    for values in of[1:]:
        assert abs(statistics.mean(values) - statistics.mean(of[0])) < statistics.stdev(of[0])


def test_missing_records_are_said_to_be_missing(monkeypatch, tmp_path):
    from examples.experiments.purposes import records
    from examples.experiments.purposes.sections import finetuning

    monkeypatch.setattr(records, "PUBLISHED", tmp_path)
    (line,) = finetuning()
    assert line.summary() == ("–", "–", "–", "not measured yet")
