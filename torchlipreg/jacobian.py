"""The limit ε → 0 by ``torch.func``: directional derivatives and the operator norm of the Jacobian."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from torchlipreg.checks import check_count, check_norm, check_number, check_points, check_values
from torchlipreg.frozen import Function, fixed_function
from torchlipreg.norms import batch_norm, dual_exponent, rescale


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
    with _forward_mode():
        derivative: Tensor = torch.func.jvp(f, (x,), (v,))[1]
        return derivative


def operator_norm(
    f: Callable[[Tensor], Any],
    x: Tensor,
    *,
    input_norm: float = 2,
    output_norm: float = 2,
    steps: int = 1000,
    tol: float = 1e-6,
) -> Tensor:
    """Return the operator norm of the Jacobian of f at each point: the exact local Lipschitz constant there.

    2→2 is the spectral norm, by power iteration on JᵀJ, stopped at ``tol``; it approaches the norm from below.
    1→q (the largest column) and p→∞ (the largest row in the dual norm) are closed forms and cost one backward per
    output. A network is measured as a fixed function: eval mode, float32.

    Args:
        f: Function or ``nn.Module`` from (N, *) to (N, *), rows independent of one another.
        x: Points, shape (N, *), floating.
        input_norm: 1, 2 or ``math.inf``.
        output_norm: 1, 2 or ``math.inf``.
        steps: Most power iterations (2→2 only), ≥ 1.
        tol: Stop when no row's estimate grew by more than this factor in an iteration (2→2 only), ≥ 0.

    Returns:
        Norms, shape (N,), detached.

    Raises:
        TypeError: If ``x`` is not a floating tensor.
        ValueError: If ``x`` is not finite, a norm is unknown, or computing it is NP-hard: ∞→1, ∞→2 and 2→1, unless f
            has a single input or a single output.
        RuntimeError: If a layer has no forward-mode derivative (2→2 only).

    References:
        Report, Property 5 and Remark 5. J. A. Tropp, *Topics in Sparse Approximation*, 2004, section 4.3 (which
        operator norms have closed forms, and which are NP-hard).
    """
    check_points("x", x)
    check_values(x, None)
    check_norm("input_norm", input_norm)
    check_norm("output_norm", output_norm)
    check_count("steps", steps)
    check_number("tol", tol)
    with fixed_function(f, eager=True) as fixed, _forward_mode(), torch.no_grad():
        y, pull_back = torch.func.vjp(fixed, x.detach())[:2]
        inputs, outputs = x[0].numel(), y[0].numel()
        if (input_norm, output_norm) == (2, 2) and outputs > 1 and inputs > 1:
            return _spectral_norm(fixed, x.detach(), pull_back, steps, tol)
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
        rows = _jacobian_rows(y, pull_back)
        return _largest_column(rows, output_norm) if input_norm == 1 else _largest_row(rows, input_norm)


def _spectral_norm(f: Function, x: Tensor, pull_back: Callable[..., Any], steps: int, tol: float) -> Tensor:
    generator = torch.Generator(x.device).manual_seed(0)
    v = rescale(torch.empty_like(x).normal_(generator=generator), 1.0, 2)
    norm = torch.zeros(len(x), dtype=x.dtype, device=x.device)
    for _ in range(steps):
        u = torch.func.jvp(f, (x,), (v,))[1]
        previous, norm = norm, torch.maximum(norm, batch_norm(u, 2))
        if bool((norm - previous <= tol * norm).all()):
            break
        v = rescale(pull_back(u, retain_graph=True)[0], 1.0, 2)
    return norm


def _jacobian_rows(y: Tensor, pull_back: Callable[..., Any]) -> Iterator[Tensor]:
    # One output at a time: memory for one row of the Jacobian, shape (N, *), whatever the number of outputs.
    for i in range(y[0].numel()):
        unit = torch.zeros_like(y).reshape(len(y), -1)
        unit[:, i] = 1
        yield pull_back(unit.view_as(y), retain_graph=True)[0]


def _largest_row(rows: Iterator[Tensor], input_norm: float) -> Tensor:
    norms = [batch_norm(row, dual_exponent(input_norm)) for row in rows]
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
    return batch_norm(columns, math.inf)


@contextlib.contextmanager
def _forward_mode() -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        # torch's own: jvp registers decompositions with the deprecated jit.script; mkldnn.flags speaks of TF32
        warnings.filterwarnings("ignore", message=".*(torch.jit.script|TF32 acceleration)")
        # Fused attention and fused RNN kernels have no forward-mode derivative; their plain versions have.
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
        try:
            yield
        except RuntimeError as error:
            if not any(sign in str(error) for sign in ("forward AD", "forward-mode", "jvp")):
                raise
            raise RuntimeError(
                "The directional derivative (radius 0, or a radius under the dtype's floor) and the spectral norm "
                f"need torch.func.jvp, which a layer of this model does not support: {error} Use a larger `radius`, "
                "for which plain difference quotients are taken."
            ) from error
