"""The claims that the pictures of examples/experiments/polynomial make, on short trainings."""

import subprocess
import sys
from pathlib import Path
from statistics import mean

import pytest
import torch

ROOT = Path(__file__).parents[2]
SEEDS = range(3)
STEPS = 200


@pytest.fixture(scope="module")
def polynomial():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        module = pytest.importorskip("examples.experiments.polynomial.training", exc_type=ImportError)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # the nets are too small for more
        yield module
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def plain(polynomial):
    return [polynomial.train(polynomial.Run(seed, weight=0.0, steps=STEPS)) for seed in SEEDS]


@pytest.mark.parametrize("method", ["max", "tv"])
def test_penalised_net_is_closer_to_the_polynomial_where_data_is_missing(polynomial, plain, method):
    penalised = [polynomial.train(polynomial.Run(seed, method, steps=STEPS)) for seed in SEEDS]
    assert mean(fit.gap_error for fit in penalised) < 0.8 * mean(fit.gap_error for fit in plain)
    assert mean(fit.steepest for fit in penalised) < 0.9 * mean(fit.steepest for fit in plain)


@pytest.mark.parametrize("method", ["max", "tv"])
def test_huge_weight_gives_the_mean_of_the_data(polynomial, plain, method):
    fit = polynomial.train(polynomial.Run(0, method, weight=1e4, steps=150))
    assert fit.distance_from_mean < 0.03
    assert plain[0].distance_from_mean > 0.5  # the data itself is far from its mean


def test_few_ascent_steps_see_less_of_the_slope_than_many(polynomial):
    from examples.experiments.polynomial.plan import FEW_PAIRS

    few, many = (
        polynomial.train(polynomial.Run(0, **FEW_PAIRS, step_size=size, ascent_steps=steps, steps=150))
        for size, steps in ((1e-4, 1), (0.1, 10))
    )
    assert few.estimate < 0.5 * few.steepest
    assert many.estimate > 0.5 * many.steepest
    assert few.steepest > 2 * many.steepest


def test_data_is_missing_in_the_gaps_only(polynomial):
    x, y = polynomial.draw_data(seed=0)
    assert x.shape == y.shape == (24, 1)
    assert not polynomial.in_gaps(x).any()
    assert polynomial.in_gaps(polynomial.GRID).float().mean() == pytest.approx(0.5, abs=0.01)


@pytest.mark.slow
@pytest.mark.distributed
def test_script_writes_its_pictures(tmp_path):
    command = [sys.executable, "-W", "error", "-m", "examples.experiments.polynomial", "--quick", "--out", tmp_path]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    pictures = list(tmp_path.glob("*.png"))
    assert len(pictures) == 5
    assert all(str(picture) in printed for picture in pictures)
