"""The step reads no tensor's value on the host: on a GPU that would stop the queue."""

import math
from contextlib import ExitStack
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from zoo import ASCENTS, METHODS, Recurrent, conv_bn, dropout_net, mlp, penalty_of

from torchlipreg.model.internals.to_host import Later
from torchlipreg.outputs import smallest_margins

READS = ("item", "tolist", "numpy", "nonzero", "__bool__", "__float__", "__int__", "__index__", "__contains__")
AWAITED = ("_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select", "_unique2", "unique_dim")


class HostRead(AssertionError):
    pass


class Kernels(TorchDispatchMode):
    """Trap the kernels whose result the host waits for, from whatever Python or C++ they are called."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        masked = name in ("index", "index_put_") and any(i is not None and i.dtype == torch.bool for i in args[1])
        if name in AWAITED or masked:  # a mask as index is turned into row numbers
            raise HostRead(name)
        return func(*args, **(kwargs or {}))


class Trap(ExitStack):
    def __init__(self):
        super().__init__()
        for name in READS:
            self.enter_context(patch.object(Tensor, name, self._refuse(name)))
        self.enter_context(Kernels())
        self.enter_context(patch.object(Later, "take", lambda later: None))  # what has not arrived yet

    @staticmethod
    def _refuse(name):
        def read(*args, **kwargs):
            raise HostRead(f"Tensor.{name}")

        return read


@pytest.mark.parametrize(
    "read",
    [
        lambda t: t.sum().item(),
        lambda t: bool(t[0] > 0),
        lambda t: float(t[0]),
        lambda t: int(t[0]),
        lambda t: t.tolist(),
        lambda t: t.numpy(),
        lambda t: t.nonzero(),
        lambda t: t[t > 0],
        lambda t: t.clone().__setitem__(t > 0, torch.ones(3)),
        lambda t: torch.where(t > 0),
        lambda t: torch.equal(t, t),
        lambda t: range(3)[t.long()[0]],
        lambda t: 1.0 in t,
        lambda t: t.masked_select(t > 0),
        lambda t: t.unique(),
    ],
)
def test_the_trap_works(read):
    t = torch.ones(3)
    read(t)
    with Trap(), pytest.raises(HostRead):
        read(t)
    read(t)


def step_without_reads(penalty, net, shape, give_outputs=True):
    for i in range(4):
        x = torch.randn(shape)
        with ExitStack() if i == 0 else Trap():  # the first call checks its batch and the outputs
            out = net(x)
            loss = out.square().mean() + penalty(net, x, out if give_outputs else None)
            loss.backward()
            penalty(net, x, update=False)
    assert penalty.estimate > 0


SETTINGS = {
    "default": {},
    "no outputs": {},
    "limit": {"radius": 0.0},
    "under the floor": {"radius": 1e-9},
    "bounds": {"bounds": (-100.0, 100.0)},
    "noise": {"noise": 0.1},
    "part of the batch": {"num_pairs": 3},
    "from a ball": {"radius": 0.1},
    "free": {"anchored": False},
    "infinity norm": {"input_norm": math.inf, "output_norm": 1},
    "one norm": {"input_norm": 1, "output_norm": math.inf},
    "exponent 1": {"exponent": 1},
    "interval": {"interval": 2},
    "steps": {"ascent_steps": 3},
}


@pytest.mark.filterwarnings("ignore:`radius`=1e-09 is less than")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("settings", SETTINGS)
def test_settings(method, settings):
    step_without_reads(penalty_of(method, **SETTINGS[settings]), mlp(), (8, 6), settings != "no outputs")


@pytest.mark.parametrize("method", ["tv", "ptv"])
def test_chosen_points(method):
    step_without_reads(penalty_of(method, num_pairs=3, choose=smallest_margins), mlp(), (8, 6))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ascent", ASCENTS)
def test_ascents(method, ascent):
    step_without_reads(penalty_of(method, ascent=ascent), mlp(), (8, 6))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("build", "shape"), [(conv_bn, (8, 3, 6, 6)), (dropout_net, (8, 6)), (Recurrent, (8, 5, 4))])
def test_models(method, build, shape):
    step_without_reads(penalty_of(method), build(), shape)


@pytest.mark.parametrize("method", METHODS)
def test_the_first_call_does_read(method):
    with Trap(), pytest.raises(HostRead):
        penalty_of(method)(mlp(), torch.randn(8, 6))


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_that_is_not_finite_is_not_looked_at_before_the_host_looks(method):
    net, x, penalty = mlp(), torch.randn(8, 6), penalty_of(method)
    penalty(net, x)
    with Trap():
        penalty(net, x * math.nan)
    with pytest.warns(UserWarning, match="NaN or infinity"):
        penalty.warn_of_data()
    assert penalty.estimate.isfinite()
