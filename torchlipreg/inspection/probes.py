"""Probes: forwards at other points, which show what a model's values and gradients depend on."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from torchlipreg.inspection.closeness import close
from torchlipreg.inspection.operations import Reads, observing
from torchlipreg.model.function import FixedFunction
from torchlipreg.model.internals.graph import leaves
from torchlipreg.model.parts.modules import parameters_by_id

FREED = (
    "The forward of argument `model` differentiates inside, and in eval mode, in which the penalty sees it, frees the "
    "graph by that, as with `create_graph=self.training`. Keep it where one is asked for: "
    "`create_graph=torch.is_grad_enabled()`."
)


def half(x: Tensor) -> int:
    """Return how many rows the first half of x, shape (N, *), has."""
    return (len(x) + 1) // 2


def of_other_rows(f: FixedFunction, x: Tensor, y: Tensor, tolerance: float) -> tuple[bool, bool]:
    """Say whether a row's values change with other rows, and whether they do with its own."""
    stays = torch.zeros(len(x), dtype=torch.bool, device="cpu")  # half of them, at random so that neighbours are parted
    stays[torch.randperm(len(x), generator=torch.Generator().manual_seed(0), device="cpu")[: half(x)]] = True
    stays = stays.to(x.device)
    shape = len(x), *[1] * (x.dim() - 1)
    moved = value_at(f, torch.where(stays.view(shape), x, x[:1]))
    if moved is None:  # it cannot take equal rows: then it knows of the others
        return True, True
    if moved.shape != y.shape:
        return False, True
    return not close(y[stays], moved[stays], tolerance), not torch.equal(y[~stays], moved[~stays])


class Gradient(NamedTuple):
    """What the gradient to the input is: see :class:`torchlipreg.inspection.seen.Seen`."""

    graph: bool = True
    no_path: bool = False
    flat: bool = False
    undefined: bool = False


def of_gradient(f: FixedFunction, x: Tensor, y: Tensor) -> Gradient:
    """Say whether y has a graph, whether that misses x though y depends on x, and whether the gradient to x is good."""
    slope = None
    with torch.enable_grad():
        z = x.detach().requires_grad_()
        value = f(z)
        if value.requires_grad:
            # Of no regular weights, and no random ones, which would come from the user's generator on some devices.
            weights = torch.arange(1, value.numel() + 1, device=value.device, dtype=value.dtype).cos().view_as(value)
            try:
                (slope,) = torch.autograd.grad(value, z, weights, allow_unused=True)
            except RuntimeError as error:
                if "backward through the graph a second time" in str(error):
                    raise RuntimeError(FREED) from error
                raise
    if slope is not None:
        return Gradient(flat=not slope.any(), undefined=bool(slope.isnan().any()))
    elsewhere = value_at(f, torch.zeros_like(x))
    return Gradient(value.requires_grad, no_path=elsewhere is None or not close(y, elsewhere))


class GraphOfOutputs(NamedTuple):
    """How the graph of the loop's outputs and that of f(x) differ.

    Attributes:
        differs: They let a gradient through to different parameters.
        lacks: Names of those that f reads and gives none, though the loop's outputs do.
    """

    differs: bool = False
    lacks: tuple[str, ...] = ()


def of_graph(f: FixedFunction, x: Tensor, fx: Tensor, y: Tensor) -> GraphOfOutputs:
    """Compare the parameters in the graphs of f(x) and of the loop's outputs y, both with gradients."""
    if f.state.is_sharded:  # whose forward puts others in place
        return GraphOfOutputs()
    parameters = parameters_by_id(f.state.modules)
    ours, theirs = (leaves(value) & parameters.keys() for value in (fx, y))
    lacks = theirs - ours
    if lacks:  # or a node of DDP or of torch.compile stands for all outputs, also those that f does not return
        reads = Reads((key, parameters[key][1]) for key in lacks)
        with observing(f, reads):
            returned = f.returned(x.detach().clone())
        lacks = (lacks & reads.of) - leaves(returned)
    names = {parameters[key][0] for key in lacks if parameters[key][1].requires_grad}
    return GraphOfOutputs(bool(lacks or ours - theirs), tuple(sorted(names)))


def of_norms(f: FixedFunction, x: Tensor) -> str | None:
    """Return what to tell of norms in train mode: that statistics are held which are read, but do not follow x."""
    reads = Reads(f.state.norms.statistics())
    with torch.enable_grad(), observing(f, reads):
        f.follow_statistics(x)
    f.state.norms.hold_those_read(reads.of)
    return f.state.norms.caution()


def value_at(f: FixedFunction, x: Tensor) -> Tensor | None:
    """Return f(x), None where the model fails there."""
    try:
        return f(x).detach()
    except torch.OutOfMemoryError:
        raise
    except Exception:  # of whatever kind: it has been seen to run
        return None
