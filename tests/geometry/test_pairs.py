"""PairSet: birth from data and in a ball, re-seeding, bounds; what counts as stuck."""

import math

import pytest
import torch

from torchlipreg.geometry.norms import row_norm
from torchlipreg.geometry.pairs import PairSet, add_noise, all_finite, draw_in_ball, draw_partners, draw_rows, is_stuck

NORMS = [1, 2, math.inf]


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("shape", [(6, 4), (6, 2, 3, 3), (6,)])
def test_finite_rows_are_those_of_a_look_at_each_coordinate(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).mul(1e30)
    flat = x.view(6, -1)
    flat[1, 0], flat[2, -1], flat[4, 0] = math.nan, math.inf, -math.inf
    flat[5, 0], flat[5, -1] = math.inf, -math.inf
    assert torch.equal(all_finite(x), x.view(6, -1).isfinite().all(1))


def test_pairs_of_data_points_never_pair_a_point_with_itself(generator):
    x = torch.arange(5.0).unsqueeze(1)
    pairs = draw_partners(x, draw_rows(x, 2000, generator), generator)
    assert (pairs.x != pairs.x_prime).all()
    counts = torch.bincount((5 * pairs.x + pairs.x_prime).flatten().long(), minlength=25).view(5, 5)
    assert (counts.diagonal() == 0).all()
    assert counts[~torch.eye(5, dtype=torch.bool)].min() > 60  # 100 of each are expected


@pytest.mark.parametrize("p", NORMS)
def test_partners_lie_in_the_ball_or_on_its_sphere(p, generator):
    x = torch.randn(50, 2, 3, dtype=torch.float64, generator=generator)
    inside = draw_in_ball(x, 0.3, p, generator)
    on_sphere = draw_in_ball(x, 0.3, p, generator, on_sphere=True)
    assert torch.equal(inside.x, x)
    assert (inside.distance(p) <= 0.3 + 1e-12).all()
    assert inside.distance(p).std() > 0.01
    torch.testing.assert_close(on_sphere.distance(p), torch.full((50,), 0.3, dtype=x.dtype))


def test_points_are_data_points(generator):
    x = torch.arange(4.0).unsqueeze(1)
    assert set(x[draw_rows(x, 100, generator)].flatten().tolist()) == {0.0, 1.0, 2.0, 3.0}


def test_noise_is_gaussian_of_the_given_width(generator):
    x = torch.ones(1, 20_000, dtype=torch.float64)
    noise = add_noise(x, 0.2, generator) - x
    assert noise.mean().item() == pytest.approx(0, abs=0.005)
    assert noise.std().item() == pytest.approx(0.2, rel=0.02)
    assert (noise.abs() > 0.4).double().mean().item() == pytest.approx(0.0455, abs=0.005)
    assert add_noise(x, 0.0, generator) is x


def test_where_takes_whole_pairs():
    ours, theirs = PairSet(torch.zeros(2, 3), torch.zeros(2, 3)), PairSet(torch.ones(2, 3), torch.ones(2, 3))
    mixed = ours.where(torch.tensor([True, False]), theirs)
    assert torch.equal(mixed.x, torch.tensor([[0.0] * 3, [1.0] * 3]))
    assert torch.equal(mixed.x_prime, mixed.x)


def test_clamp_is_idempotent_and_none_means_everywhere(generator):
    pairs = draw_in_ball(torch.randn(9, 4, generator=generator), 1.0, 2, generator)
    once = pairs.clamp((-0.5, 0.5))
    assert max(once.x.abs().max(), once.x_prime.abs().max()) == 0.5
    assert all(torch.equal(a, b) for a, b in zip(once, once.clamp((-0.5, 0.5)), strict=True))
    assert pairs.clamp(None) is pairs


@pytest.mark.parametrize("p", NORMS)
def test_distance(p, generator):
    pairs = draw_in_ball(torch.zeros(6, 4), 2.0, p, generator)
    torch.testing.assert_close(pairs.distance(p), row_norm(pairs.x_prime, p))


def test_stuck_pairs_are_level_sets_collapsed_or_not_finite():
    offsets = torch.tensor([1.0, 1.0, 1.0, 1e-9, 1.0, 1.0])
    q = torch.tensor([2.0, 0.0, 1e-7, 2.0, math.nan, math.inf])  # 1e-7 is rounding beside 2
    pairs = PairSet(torch.zeros(6, 1), offsets.unsqueeze(1))
    assert is_stuck(pairs, q, 1e-4, 2).tolist() == [False, True, True, True, True, True]
    assert is_stuck(pairs, q, 0.0, 2).tolist() == [False, True, True, False, True, True]


def test_all_pairs_of_a_constant_function_are_stuck():
    assert is_stuck(PairSet(torch.zeros(3, 1), torch.ones(3, 1)), torch.zeros(3), 1e-4, 2).all()
