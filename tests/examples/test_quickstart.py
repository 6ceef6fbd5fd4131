"""The quickstart, in its quick form: what a newcomer sees first, and what it promises."""

import ast
import contextlib
import io
import re
import statistics
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
COLUMNS = ["training", "clean", "PGD 0.1", "PGD 0.2", "noise 0.4", "Lipschitz ≥", "time/step"]


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPLBACKEND", "agg")
        patch.syspath_prepend(str(EXAMPLES))
        yield pytest.importorskip("quickstart", exc_type=ImportError)


@pytest.fixture(scope="module")
def demo(script, tmp_path_factory):
    """What the script printed, its results, its picture."""
    picture = tmp_path_factory.mktemp("demo") / "new" / "quickstart.png"
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.redirect_stderr(io.StringIO()):
        results = script.main(["--quick", "--out", str(picture)])
    return printed.getvalue(), results, picture


def mean(results, way, key):
    return statistics.mean(run[key] for run in results[way])


def test_table_and_picture(demo):
    printed, results, picture = demo
    lines = [re.split(r"\s*[│┃]\s*", line.strip("│┃ ")) for line in printed.splitlines() if line[:1] in "│┃"]
    header, *rows = ([cell.strip() for cell in line] for line in lines)
    assert header == COLUMNS
    assert [row[0] for row in rows] == list(results)
    for way, clean, *_, lipschitz, step in rows:
        shown = statistics.mean(100 * run[0.0] for run in results[way])
        assert float(clean.split(" ± ")[0]) == pytest.approx(shown, abs=0.051)
        assert float(lipschitz.split(" ± ")[0]) > 1
        assert step.endswith("×")
    assert f"Picture: {picture}" in printed.replace("\n", "")


def test_picture_shows_every_way(script, demo):
    from matplotlib.colors import to_rgb
    from matplotlib.image import imread

    _, results, picture = demo
    pixels = imread(picture)[..., :3]
    assert len(script.STYLES) == len(results)
    for colour, _ in script.STYLES:
        assert (abs(pixels - to_rgb(colour)).max(-1) < 0.02).sum() > 300, f"no curve in {colour}"


@pytest.mark.parametrize("way", ["tv", "tv, interval=5", "max"])
def test_penalised_is_more_robust_at_equal_clean_accuracy(demo, way):
    _, results, _ = demo
    assert mean(results, way, 0.1) > mean(results, "plain", 0.1) + 0.15
    assert mean(results, way, 0.0) > mean(results, "plain", 0.0) - 0.03  # of 10 epochs only
    assert mean(results, way, "lipschitz") < mean(results, "plain", "lipschitz") / 1.5


def test_attacks_stay_in_the_ball_and_do_harm(script):
    """One step of secml-torch's PGD would return the unperturbed image: its last step is never looked at."""
    (x, y), _ = script.load_data()
    x, y = x[:64], y[:64]
    training = script.Training("plain", seed=0)
    for _ in range(30):
        training.step(x, y)
    model = training.model.eval().requires_grad_(False)
    accuracy = {}
    for name, attack in {"FGSM": script.fgsm, "PGD": script.pgd}.items():
        perturbed = attack(model, x, y, 0.2)
        assert perturbed.min() >= 0
        assert perturbed.max() <= 1
        assert 0.19 < (perturbed - x).abs().max() <= 0.2 + 1e-6
        accuracy[name] = (model(perturbed).argmax(1) == y).float().mean()
    assert accuracy["PGD"] <= accuracy["FGSM"] < (model(x).argmax(1) == y).float().mean() - 0.2


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_a_script_imports_nothing_beside_it_and_is_short(path):
    beside = {p.stem for p in EXAMPLES.iterdir()} | {"examples"}
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
        assert not {name.split(".")[0] for name in names} & beside
