"""The limit ε → 0 by ``torch.func``: directional derivatives, and operator norms of the Jacobian at each point."""

from __future__ import annotations

import contextlib
import math
import re
import threading
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from torchlipreg.geometry.norms import dual_exponent, per_row, rescale, row_norm, scaled_norm
from torchlipreg.geometry.plain import PlainFormulas

Function = Callable[[Tensor], Tensor]
_ONE_AT_A_TIME = threading.RLock()  # torch's levels of forward mode are those of the process, not of a thread
SETTLED = 32  # a direction v has settled where ‖Jᵀ J v / σ − σ v‖ is at most so many tolerances of σ = ‖J v‖
Transposed = Callable[[Tensor], Tensor]


def directional_derivative(f: Function, x: Tensor, v: Tensor) -> Tensor:
    """Return J(xᵢ) vᵢ of each row: what (f(x + εv) − f(x)) / ε tends to (Property 5).

    Args:
        f: Function from (N, *) to (N, *), rows independent of one another.
        x: Points, shape (N, *).
        v: Directions, shape (N, *).

    Returns:
        Derivatives, the shape of f(x); differentiable in ``v`` and in the parameters of f.

    Raises:
        RuntimeError: If a layer has no forward-mode derivative (the message names the way out).
    """
    with forward_mode(), PlainFormulas():
        derivative: Tensor = torch.func.jvp(f, (x,), (v,))[1]
        return derivative


def pull_back(f: Function, x: Tensor) -> tuple[Tensor, Transposed]:
    """Return f(x), and u -> Jᵀu of each row: by autograd, which takes every custom function."""
    with torch.enable_grad():
        z = x.detach().requires_grad_()
        y = f(z)

    def transposed(u: Tensor) -> Tensor:
        if not y.requires_grad:
            return torch.zeros_like(x)
        return torch.autograd.grad(y, z, u, retain_graph=True, materialize_grads=True)[0]

    return y.detach(), transposed


def jacobian_norm(f: Function, x: Tensor, input_norm: float, output_norm: float, steps: int, tol: float) -> Tensor:
    """Return ‖J(xᵢ)‖ from ℓp to ℓq at each point: exact in closed form, 2→2 by power iteration from below.

    Args:
        f: Function from (N, *) to (N, *), rows independent of one another.
        x: Points, shape (N, *).
        input_norm: 1, 2 or ``math.inf``.
        output_norm: 1, 2 or ``math.inf``.
        steps: Most power iterations.
        tol: Stop when no row's estimate grew by more than this factor in an iteration, and its direction had settled.

    Returns:
        Norms, shape (N,).

    Raises:
        ValueError: If the norm is NP-hard to compute.
    """
    with forward_mode():
        y, transposed = pull_back(f, x)
        inputs, outputs = x[0].numel(), y[0].numel()
        if (input_norm, output_norm) == (2, 2) and outputs > 1 and inputs > 1:
            return _spectral_norm(f, x, transposed, steps, tol)
        if outputs == 1:
            output_norm = math.inf
        elif inputs == 1:
            input_norm = 1
        if input_norm != 1 and output_norm != math.inf:
            raise ValueError(
                f"Expected `input_norm` 1, or `output_norm` math.inf, or both 2, but got `input_norm`={input_norm!r} "
                f"with `output_norm`={output_norm!r}: this operator norm is NP-hard to compute. "
                "`lipschitz_lower_bound` gives a lower bound in any pair of norms."
            )
        rows = _jacobian_rows(y, transposed)
        return _largest_column(rows, output_norm) if input_norm == 1 else _largest_row(rows, input_norm)


def _spectral_norm(f: Function, x: Tensor, transposed: Transposed, steps: int, tol: float) -> Tensor:
    generator = torch.Generator(x.device).manual_seed(0)
    v = rescale(torch.empty_like(x).normal_(generator=generator), 1.0, 2)
    norm = torch.zeros(len(x), dtype=x.dtype, device=x.device)
    for _ in range(steps):
        with PlainFormulas():
            u = torch.func.jvp(f, (x,), (v,))[1]
        now = scaled_norm(u, 2)
        previous, norm = norm, torch.maximum(norm, now)
        w = transposed(rescale(u, 1.0, 2))  # Jᵀ u itself would overflow at slopes of 1e20
        if bool((norm - previous <= tol * norm).all()):
            # Slow growth alone may also mean that two singular values are close.
            if bool((scaled_norm(w - per_row(now, w) * v, 2) <= SETTLED * tol * now).all()):
                break
        v = rescale(w, 1.0, 2)
    return norm


def _jacobian_rows(y: Tensor, transposed: Transposed) -> Iterator[Tensor]:
    # One output at a time: memory for one row of the Jacobian, shape (N, *), whatever the number of outputs.
    for i in range(y[0].numel()):
        unit = torch.zeros_like(y).reshape(len(y), -1)
        unit[:, i] = 1
        yield transposed(unit.view_as(y))


def _largest_row(rows: Iterator[Tensor], input_norm: float) -> Tensor:
    norms = [scaled_norm(row, dual_exponent(input_norm)) for row in rows]
    return torch.stack(norms).amax(0)


def _largest_column(rows: Iterator[Tensor], output_norm: float) -> Tensor:
    columns = next(rows).abs()
    for row in rows:
        if output_norm == 1:
            columns = columns + row.abs()
        elif output_norm == 2:
            columns = torch.hypot(columns, row)
        else:
            columns = torch.maximum(columns, row.abs())
    return row_norm(columns, math.inf)


@contextlib.contextmanager
def forward_mode() -> Iterator[None]:
    """Let one thread at a time take derivatives in forward mode; say what to do where a layer has none."""
    with _ONE_AT_A_TIME, warnings.catch_warnings():
        # torch's own: jvp registers decompositions with the deprecated jit.script
        warnings.filterwarnings("ignore", message=".*torch.jit.script")
        try:
            yield
        except RuntimeError as error:
            if not re.search("forward[ -](AD|mode)|jvp|functorch", str(error)):
                raise
            raise RuntimeError(
                "The directional derivative (radius 0, or a radius under the dtype's floor) and the spectral norm "
                "need torch.func.jvp, which a layer of this model, or what the call is inside of, does not support: "
                f"{error} With a larger `radius` plain difference quotients are taken; `operator_norm` takes other "
                "pairs of norms without it."
            ) from error
