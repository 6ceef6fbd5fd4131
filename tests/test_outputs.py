"""What of a model's output is penalised, the square roots of probabilities, and where: at the smallest margins."""

from types import SimpleNamespace

import pytest
import torch
from zoo import bare

from torchlipreg import operator_norm
from torchlipreg.outputs import root_probabilities, smallest_margins


def draw(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_their_distance_is_hellingers():
    p, q = draw(6, 4), draw(6, 4, seed=1)
    distance = torch.linalg.vector_norm(root_probabilities(p) - root_probabilities(q), dim=1)
    affinity = (p.softmax(1) * q.softmax(1)).sqrt().sum(1)  # Bhattacharyya's: H² = 1 − affinity
    torch.testing.assert_close(distance, (2 * (1 - affinity)).sqrt(), rtol=0, atol=1e-12)


def test_close_by_it_is_half_the_fisher_metric():
    logits, step = draw(6, 4), 1e-6 * draw(6, 4, seed=1)
    distance = torch.linalg.vector_norm(root_probabilities(logits + step) - root_probabilities(logits), dim=1)
    p = logits.softmax(1)
    variance = (p * step**2).sum(1) - (p * step).sum(1) ** 2  # of the step under p: stepᵀ Fisher step
    torch.testing.assert_close(distance, variance.sqrt() / 2, rtol=1e-5, atol=0)


def test_a_shift_and_the_lead_of_a_sure_winner_do_not_count():
    logits = draw(6, 4)
    torch.testing.assert_close(root_probabilities(logits + 3.0), root_probabilities(logits))
    sure = torch.tensor([[100.0, 0.0], [200.0, 0.0]], requires_grad=True)
    roots = root_probabilities(sure)
    torch.testing.assert_close(roots[0], roots[1])
    assert torch.autograd.grad(roots.sum(), sure)[0].isfinite().all()


@pytest.mark.parametrize("wrap", [lambda y: (y, None), lambda y: {"logits": y}, lambda y: SimpleNamespace(logits=y)])
def test_logits_are_found_as_without_it(wrap):
    logits = draw(6, 4)
    assert torch.equal(root_probabilities(wrap(logits)), root_probabilities(logits))


@pytest.mark.parametrize("wrong", [None, 3.0, torch.ones(2, 3, dtype=torch.long)])
def test_what_are_no_logits_is_refused(wrong):
    with pytest.raises(TypeError, match="logits"):
        root_probabilities(wrong)


def test_the_classes_axis_and_the_precision():
    maps = draw(2, 5, 3, 3)
    torch.testing.assert_close(root_probabilities(maps, dim=1).square().sum(1), torch.ones(2, 3, 3).double())
    assert root_probabilities(maps.bfloat16(), dim=1).dtype == torch.float32
    with pytest.raises(ValueError, match=r"`dim` to be the axis of the classes.*\(2, 5, 3, 3\).*dim=1"):
        root_probabilities(maps)
    texts = draw(2, 5, 3)
    assert torch.equal(root_probabilities(texts), root_probabilities(texts, dim=-1))


def test_the_penalty_of_a_small_pair_is_that_of_the_jacobian():
    net, x = torch.nn.Linear(5, 3, dtype=torch.float64), draw(8, 5)
    penalty = bare("tv", 1.0, radius=1e-5, ascent_steps=200, exponent=1, output=root_probabilities)
    value = penalty(net, x, net(x))
    assert penalty.reuses_outputs
    norm = operator_norm(lambda z: root_probabilities(net(z)), x).mean()
    torch.testing.assert_close(value.detach(), norm, rtol=1e-4, atol=0)
    value.backward()
    assert net.weight.grad.isfinite().all()


def test_the_smallest_margins_are_those_of_a_plain_loop():
    logits = draw(40, 5)
    ordered = [sorted(row, reverse=True) for row in logits.tolist()]
    margins = [row[0] - row[1] for row in ordered]
    assert smallest_margins(logits, 7).tolist() == sorted(range(40), key=margins.__getitem__)[:7]
    assert smallest_margins(logits, 99).tolist() == list(range(40))  # a short last batch
    assert smallest_margins({"logits": logits + 3}, 7).tolist() == smallest_margins(2 * logits, 7).tolist()
    assert len(smallest_margins(logits[:0], 7)) == 0


def test_rows_keep_their_order_where_all_are_taken_and_those_with_nan_come_last():
    logits = draw(6, 3)
    assert smallest_margins(logits, 6).tolist() == list(range(6))
    logits[2, 1] = torch.nan
    assert 2 not in smallest_margins(logits, 5)


@pytest.mark.parametrize(
    ("y", "count", "error", "words"),
    [
        (torch.ones(4), 2, ValueError, "`y`.*\\(N, C\\)"),
        (torch.ones(4, 1), 2, ValueError, "`y`.*two classes.*one logit"),
        (torch.ones(4, 3, 2), 2, ValueError, "`y`"),
        (torch.ones(4, 3, dtype=torch.long), 2, TypeError, "`y`.*logits"),
        (2, torch.ones(4, 3), TypeError, "`y`.*logits"),
        (torch.ones(4, 3), 0, ValueError, "`num_points`"),
        (torch.ones(4, 3), 0.5, TypeError, "`num_points`"),
    ],
)
def test_wrong_margins_are_refused(y, count, error, words):
    with pytest.raises(error, match=words):
        smallest_margins(y, count)


@pytest.mark.parametrize("shape", [(8, 1), (8,)])
def test_one_class_has_no_root_probabilities(shape):
    """All of them are 1: as it was, the penalty was zero without a word."""
    with pytest.raises(ValueError, match=r"`y` to hold logits of two classes or more, .*torch.cat\(\[z, 0 \* z\], 1\)"):
        root_probabilities(torch.randn(shape))
    z = torch.randn(8, 1)
    of_two = root_probabilities(torch.cat([z, 0 * z], 1)) ** 2
    torch.testing.assert_close(of_two[:, 0], z[:, 0].sigmoid())
