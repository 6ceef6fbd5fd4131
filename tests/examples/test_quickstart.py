"""The quickstart, in its quick form: what a newcomer sees first, and what it promises."""

import contextlib
import io
import re
import statistics
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
COLUMNS = ["training", "clean", "FGSM 0.1", "PGD 0.1", "PGD 0.2", "noise 0.2", "noise 0.4", "Lipschitz ≥", "time/step"]


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
    header, *rows = (cells for line in printed.splitlines() if len(cells := re.split(r"\s{2,}", line.strip())) > 5)
    assert header == COLUMNS
    assert [row[0] for row in rows] == list(results)
    for way, clean, *_, lipschitz, step in rows:
        shown = statistics.mean(100 * run["PGD", 0.0] for run in results[way])
        assert float(clean.split(" ± ")[0]) == pytest.approx(shown, abs=0.051)
        assert float(lipschitz.split(" ± ")[0]) > 1
        assert step.endswith("×")
    assert f"Picture: {picture}" in printed


def test_picture_shows_every_way(demo):
    from _report import STYLES
    from matplotlib.colors import to_rgb
    from matplotlib.image import imread

    _, results, picture = demo
    pixels = imread(picture)[..., :3]
    assert pixels.shape[0] > 400
    assert pixels.shape[1] > 1000
    assert len(STYLES) == len(results)
    for colour, *_ in STYLES:
        assert (abs(pixels - to_rgb(colour)).max(-1) < 0.02).sum() > 300, f"no curve in {colour}"


@pytest.mark.parametrize("way", ["tv", "tv, interval=5", "max"])
def test_penalised_is_more_robust_at_equal_clean_accuracy(demo, way):
    _, results, _ = demo
    assert mean(results, way, ("PGD", 0.1)) > mean(results, "plain", ("PGD", 0.1)) + 0.15
    assert mean(results, way, ("PGD", 0.0)) > mean(results, "plain", ("PGD", 0.0)) - 0.03  # of 10 epochs only
    assert mean(results, way, "lipschitz") < mean(results, "plain", "lipschitz") / 2


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
