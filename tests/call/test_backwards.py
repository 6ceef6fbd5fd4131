"""`interval` beside several calls a step: it may fall on the same of them always."""

import warnings

import pytest
import torch
from zoo import bare, mlp

TOLD = "always falls on the first"


def steps(interval, calls, count=40, *, together=True, update=True):
    """The warnings of a run of steps with so many calls each, one backward for all or one for each."""
    net, penalty = mlp(), bare("tv", 0.1, interval=interval)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(count):
            total = 0
            for call in range(calls):
                x = torch.randn(4, 6)
                total = total + net(x).square().sum() + penalty(net, x, update=update or call == 0)
                if not together:
                    total.backward()
                    total = 0
            if together:
                total.backward()
            net.zero_grad()
    return [str(w.message) for w in caught if TOLD in str(w.message)]


@pytest.mark.parametrize(("interval", "calls"), [(2, 2), (4, 2), (3, 3)])
def test_it_is_told_once_where_the_others_are_left_out(interval, calls):
    (message,) = steps(interval, calls)
    assert f"`interval`={interval} " in message
    assert f"of the {calls} before" in message


@pytest.mark.parametrize(("interval", "calls"), [(1, 2), (3, 2), (2, 3), (2, 1), (4, 1)])
def test_where_it_falls_on_each_nothing_is_told(interval, calls):
    assert not steps(interval, calls)


def test_accumulation_with_a_backward_each_is_no_case():
    assert not steps(2, 2, together=False)


def test_evaluating_again_is_no_case():
    assert not steps(2, 3, update=False)


@pytest.mark.parametrize(("interval", "told"), [(2, True), (4, True), (3, False), (1, False)])
def test_two_models_that_take_turns(interval, told):
    """As it was, the second was never penalised, and nobody was told."""
    models, penalty = (mlp(), mlp()), bare("tv", 0.1, interval=interval)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(60):
            for net in models:
                x = torch.randn(4, 6)
                (net(x).square().sum() + penalty(net, x)).backward()
                net.zero_grad()
    assert [f"`interval`={interval} counts the calls with all models" in str(w.message) for w in caught] == [
        True
    ] * told


def test_a_model_that_follows_another_is_no_turn():
    penalty = bare("tv", 0.1, interval=8)
    for _ in range(3):
        net = mlp()
        for _ in range(20):
            x = torch.randn(4, 6)
            (net(x).square().sum() + penalty(net, x)).backward()  # warnings are errors
