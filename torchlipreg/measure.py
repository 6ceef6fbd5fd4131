"""Measuring a model: at pairs, at a point, over a data set. Long: half documents the three functions."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from torchlipreg.batches import batches_of, check_inputs, joined, with_progress_bar
from torchlipreg.checks import (
    Normalization,
    check_bounds,
    check_callable,
    check_count,
    check_flag,
    check_function,
    check_norm,
    check_normalization,
    check_number,
)
from torchlipreg.geometry.derivative import jacobian_norm
from torchlipreg.geometry.norms import scaled_norm
from torchlipreg.geometry.units import at_least_single
from torchlipreg.lower_bound import Search, check_derivative, look_at
from torchlipreg.model.fixed import fixed_function
from torchlipreg.outputs import select
from torchlipreg.tensor_checks import check_points, check_values, in_raw_units

P = ParamSpec("P")
R = TypeVar("R")


def difference_quotient(
    f: Callable[[Tensor], Any], x: Tensor, x_prime: Tensor, *, input_norm: float = 2, output_norm: float = 2
) -> Tensor:
    """Return the difference quotient ‖f(xᵢ) − f(x′ᵢ)‖ / ‖xᵢ − x′ᵢ‖ of each pair.

    It never exceeds the Lipschitz constant of f in the same norms: a lower bound, not a certificate. ``f`` is
    called as it is: put a network into eval mode first, or use :func:`torchlipreg.lipschitz_lower_bound`.

    Args:
        f: Function from (N, *) to (N, *), rows independent of one another; or to what holds that, as models return it.
        x: First points, shape (N, *), floating.
        x_prime: Second points, the shape of ``x``.
        input_norm: 1, 2 or ``math.inf``: ‖x − x′‖.
        output_norm: 1, 2 or ``math.inf``: ‖f(x) − f(x′)‖.

    Returns:
        Quotients, shape (N,), differentiable, at least float32. A coincident pair has quotient 0.

    Raises:
        TypeError: If ``x``, ``x_prime`` or the output of f is not a floating tensor.
        ValueError: If a norm is unknown, the shapes differ, or the output does not keep the batch axis.

    References:
        Report, eq. (3).
    """
    check_callable("f", f)
    check_norm("input_norm", input_norm)
    check_norm("output_norm", output_norm)
    check_points("x", x)
    check_points("x_prime", x_prime)
    if x.shape != x_prime.shape:
        raise ValueError(
            f"Expected argument `x_prime` to have the shape of `x`, {tuple(x.shape)}, but got {tuple(x_prime.shape)}."
        )
    at_x, at_x_prime = (at_least_single(select(f(z), None, len(z))[0]) for z in (x, x_prime))
    distance = scaled_norm(at_least_single(x_prime) - at_least_single(x), input_norm)
    return scaled_norm(at_x_prime - at_x, output_norm) / distance.clamp_min(torch.finfo(distance.dtype).tiny)


def _measure(measure: Callable[P, R]) -> Callable[P, R]:
    """Let a measure take derivatives under ``torch.inference_mode``, and leave torch's random numbers as they were."""

    @functools.wraps(measure)
    def outside(*args: P.args, **kwargs: P.kwargs) -> R:
        with torch.inference_mode(False), torch.random.fork_rng(range(torch.cuda.device_count())):
            return measure(*args, **kwargs)

    return outside


@_measure
def operator_norm(
    f: Callable[[Tensor], Any],
    x: Tensor,
    *,
    input_norm: float = 2,
    output_norm: float = 2,
    steps: int = 1000,
    tol: float = 1e-6,
    normalization: Normalization | None = None,
) -> Tensor:
    """Return the operator norm of the Jacobian of f at each point: the exact local Lipschitz constant there.

    2→2 is the spectral norm, by power iteration on JᵀJ, stopped at ``tol``; it approaches the norm from below.
    1→q (the largest column) and p→∞ (the largest row in the dual norm) are closed forms and cost one backward per
    output. A network is measured as a fixed function: eval mode, float32. One in half precision is measured in
    float64 where it allows that.

    Args:
        f: Function or ``nn.Module`` from (N, *) to (N, *), rows independent of one another.
        x: Points, shape (N, *), floating.
        input_norm: 1, 2 or ``math.inf``.
        output_norm: 1, 2 or ``math.inf``.
        steps: Most power iterations (2→2 only), ≥ 1.
        tol: Stop when no row's estimate grew by more than this factor in an iteration, and its direction has
            settled (2→2 only), ≥ 0. Close singular values take more ``steps``.
        normalization: (mean, std) that was applied to ``x``: the norms are then those of the raw inputs, as in
            :class:`torchlipreg.LipschitzPenalty`.

    Returns:
        Norms, shape (N,), detached.

    Raises:
        TypeError: If ``x`` is not a floating tensor.
        ValueError: If the model is random, hides its gradient or has one that is not that of its values, ``x`` is not
            finite, a norm is unknown, or computing it is NP-hard: ∞→1, ∞→2 and 2→1, unless f has a single input or a
            single output.
        RuntimeError: If a layer has no forward-mode derivative (2→2 only).

    References:
        Report, Property 5 and Remark 5. J. A. Tropp, *Topics in Sparse Approximation*, 2004, section 4.3 (which
        operator norms have closed forms, and which are NP-hard).
    """
    check_callable("f", f)
    check_points("x", x)
    check_values("x", x, None)
    check_norm("input_norm", input_norm)
    check_norm("output_norm", output_norm)
    check_count("steps", steps)
    check_number("tol", tol)
    units = check_normalization(normalization)
    held = functools.partial(fixed_function, f, eager=True, units=units, meet=True)
    with held() as fixed, torch.no_grad():
        x = in_raw_units(at_least_single(x), units)
        seen = look_at(f, fixed, x, exact=True)
        in_float64 = functools.partial(held, double=True)
        if not seen.coupled:  # a backward sums over rows
            check_derivative(in_float64, x, reverse=True)
        if input_norm == output_norm == 2:
            check_derivative(in_float64, x)
        if seen.dtype.itemsize >= torch.float32.itemsize:
            return jacobian_norm(fixed, x, input_norm, output_norm, steps, tol)
    # A model may refuse float64 in its own way.
    with contextlib.suppress(Exception), held(double=True) as fixed, torch.no_grad():
        return jacobian_norm(fixed, x.double(), input_norm, output_norm, steps, tol).to(x.dtype)
    with held() as fixed, torch.no_grad():
        return jacobian_norm(fixed, x, input_norm, output_norm, steps, tol)


@_measure
def lipschitz_lower_bound(
    model: Callable[[Tensor], Any],
    inputs: Tensor | Iterable[Any],
    *,
    radius: float | None = None,
    input_norm: float = 2,
    output_norm: float = 2,
    steps: int = 20,
    bounds: tuple[float, float] | None = None,
    normalization: Normalization | None = None,
    output: Callable[[Any], Any] | None = None,
    batch_size: int = 256,
    seed: int = 0,
    progress: bool = False,
) -> float:
    """Return the largest difference quotient found around the points of a data set.

    Each point is paired with another; power steps turn the partner to where the quotient is largest. With
    ``radius=None`` partners start at other data points and come closer from step to step, so that quotients at all
    scales are seen; with a number they stay at that distance. The model is measured as a fixed function (eval mode,
    float32) and left as it was; the pairs that are found are measured once more in float64, so that rounding makes
    no quotient too large. The result is a lower bound on the Lipschitz constant, not a certificate.

    Args:
        model: Function or ``nn.Module``; may be wrapped or compiled.
        inputs: A floating tensor, shape (N, *), or an iterable of batches: tensors, or tuples that begin with one.
            With ``radius=None`` a row that is alone in its batch joins the batch before.
        radius: ε ≥ 0 in the input norm and in raw units, or None. 0 is the directional derivative.
        input_norm: 1, 2 or ``math.inf``.
        output_norm: 1, 2 or ``math.inf``.
        steps: Power steps for each pair, ≥ 1.
        bounds: (lo, hi) of the data in raw units: points stay inside.
        normalization: (mean, std) that was applied to ``inputs``: radius, bounds, norms and the result are then those
            of the raw inputs, as in :class:`torchlipreg.LipschitzPenalty`.
        output: From the model's return value to the tensor that counts, as in ``LipschitzPenalty``.
        batch_size: Rows at a time of an ``inputs`` tensor.
        seed: Of the starting pairs, ≥ 0.
        progress: Show a progress bar (needs tqdm).

    Returns:
        The largest quotient, in output units per input unit.

    Raises:
        TypeError: If ``inputs`` does not give dense floating tensors, or an argument has the wrong type.
        ValueError: If the model is random, its outputs or a quotient are not finite, an argument is out of range, the
            data are not finite or lie outside ``bounds``, no batch holds the two points that ``radius=None`` needs, or,
            with ``radius=0``, the model's derivative is not that of its values.
        ImportError: If ``progress`` is asked for and tqdm is not installed.

    References:
        Report, eq. (3) and Definition 1.
    """
    check_callable("model", model)
    check_norm("input_norm", input_norm)
    check_norm("output_norm", output_norm)
    units = check_normalization(normalization)
    steps, bounds = check_count("steps", steps), check_bounds(bounds, units)
    batch_size = check_count("batch_size", batch_size)
    if radius is not None:
        radius = check_number("radius", radius)
    check_function("output", output)
    seed = check_count("seed", seed, low=0)
    check_flag("progress", progress)
    check_inputs(inputs)
    batches: Iterable[Tensor] = batches_of(inputs, batch_size)
    if radius is None:
        batches = joined(batches)
    if progress:
        batches = with_progress_bar(batches)
    search = Search(model, radius, input_norm, output_norm, steps, bounds, units, output)
    largest = None
    for x in batches:
        if radius is None and len(x) < 2:
            continue
        largest = search.largest(x, torch.Generator(x.device).manual_seed(seed), largest)
    if largest is None:
        raise ValueError(
            "Expected argument `inputs` to hold a batch with two points or more, from which `radius`=None makes "
            "pairs, but got none. Give larger batches, or a `radius`."
        )
    if not math.isfinite(largest):
        raise ValueError(
            f"Expected argument `model` to have finite outputs, but a difference quotient is {float(largest)}. If the "
            "model must not be evaluated outside of the data's range, give `bounds`."
        )
    return float(largest)
