"""An exception at any function call inside of a penalty's call: model, torch and penalty are as before it."""

import copy
import sys
from pathlib import Path

import pytest
import torch
import torch.utils.checkpoint
from torch import nn
from zoo import penalty_of, same, traces

import torchlipreg

OURS = str(Path(torchlipreg.__file__).parent)
STRIDE = 7  # calls from one exception to the next in the fast run; the slow one raises at each


class Interrupt(BaseException):
    """As KeyboardInterrupt: not an Exception."""


def interrupted(work, n):
    """Raise at the n-th call of one of our functions; return whether there was one, None if it got lost."""
    count, swallowed = 0, False

    def profile(frame, event, arg):
        nonlocal count
        if event == "call" and frame.f_code.co_filename.startswith(OURS):  # torch itself is not safe
            count += 1
            if count == n:
                sys.setprofile(None)
                raise Interrupt

    sys.setprofile(profile)
    try:
        work()
        swallowed = count >= n  # as in the closing of a generator: the call went on
    except Interrupt:
        pass
    finally:
        sys.setprofile(None)
    return None if swallowed else count >= n


def switches():
    return (
        torch.backends.mha.get_fastpath_enabled(),
        torch.utils.checkpoint._checkpoint_hook,
        torch._C._get_cudnn_enabled(),
        torch._C._get_mkldnn_enabled(),
        torch.backends.cuda.flash_sdp_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.is_grad_enabled(),
        torch._C._len_torch_dispatch_stack(),
        len(nn.modules.module._global_forward_pre_hooks),
    )


def build():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3)).train()
    net.kept = [1]
    return net


pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # one that got lost
CASES = {
    "tv": ("tv", {}, True),
    "max": ("max", {}, True),
    "the limit": ("tv", {"radius": 0.0}, True),
    "first call": ("tv", {}, False),
}


def check(case, stride):
    method, settings, warm = CASES[case]
    net, x, penalty = build(), torch.randn(8, 6), penalty_of(method, **settings)
    out = net(x)
    if warm:
        penalty(net, x, out)
    n, wrong = 1, []
    before, threw = traces(net), switches()
    while True:
        if not warm:
            penalty = penalty_of(method, **settings)
        state = copy.deepcopy(penalty.state_dict())
        raised = interrupted(lambda: penalty(net, x, out), n)  # noqa: B023
        if raised is False:
            break
        if raised and not (same(traces(net), before) and switches() == threw and same(penalty.state_dict(), state)):
            wrong.append(n)
            assert len(wrong) < 5, wrong
        n += stride
    assert n > 100
    assert wrong == []


@pytest.mark.parametrize("case", CASES)
def test_an_interrupt_leaves_no_trace(case):
    check(case, STRIDE)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("case", CASES)
def test_an_interrupt_at_every_call_leaves_no_trace(case):
    check(case, 1)
