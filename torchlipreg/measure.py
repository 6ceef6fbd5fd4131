"""Measuring a model: at pairs, at a point, over a data set. Long: half documents the three functions."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

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
    of_samples = isinstance(inputs, Dataset) and not isinstance(inputs, IterableDataset)
    if of_samples or not any(hasattr(inputs, method) for method in ("__iter__", "__getitem__")):
        hint = (
            " Give a DataLoader of it, whose items are batches (with batch_size=None if its own are)."
            if of_samples
            else ""
        )
        raise TypeError(
            "Expected argument `inputs` to be a tensor or an iterable of batches, but got "
            f"{type(inputs).__name__}.{hint}"
        )
    batches: Iterable[Tensor] = _batches(inputs, batch_size)
    if radius is None:
        batches = _joined(batches)
    if progress:
        batches = _with_progress_bar(batches)
    search = Search(model, radius, input_norm, output_norm, steps, bounds, units, output)
    largest = None
    for x in batches:
        if radius is None and len(x) < 2:
            continue
        found = search.largest(x, torch.Generator(x.device).manual_seed(seed), look=largest is None)
        largest = found if largest is None else torch.maximum(largest, found)
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


def gradient_ratio(loss: Tensor, penalty_value: Tensor, parameters: Iterable[Tensor]) -> float:
    """Return ‖∇ penalty‖ / ‖∇ loss‖ over parameters, for choosing a weight: the ratio is proportional to it.

    Takes two backwards, reads their result, and leaves graphs and ``.grad`` as they are: not for every step. A
    hundredth to one is where penalties worked, clean accuracy fell from a tenth on where a network could not fit its
    data; under 1e-4 they do nothing::

        out = model(x)
        loss, value = criterion(out, y), penalty(model, x, out)
        print(gradient_ratio(loss, value, model.parameters()))
        (loss + value).backward()

    Args:
        loss: The task's, 0-dim, with its graph.
        penalty_value: What the penalty returned, 0-dim, with its graph; one without (weight 0) has no gradient. With
            ``interval=k`` it is k times a step's mean, where ``penalty.share`` is of the mean, and 0 in between.
        parameters: Those to compare at; ones that need no gradient do not count.

    Returns:
        The ratio ≥ 0; infinity where the loss has no gradient but the penalty has, and 0 where neither has.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If ``loss`` or ``penalty_value`` is not 0-dim, ``loss`` carries no gradient, or no parameter does.
    """
    for name, value in (("loss", loss), ("penalty_value", penalty_value)):
        if not isinstance(value, Tensor):
            raise TypeError(f"Expected argument `{name}` to be a tensor, but got {type(value).__name__}.")
        if value.dim() != 0:
            raise ValueError(f"Expected argument `{name}` to be 0-dim, but got shape {tuple(value.shape)}.")
    if not loss.requires_grad:
        raise ValueError("Expected argument `loss` to carry a gradient, but it has none. Compare before backward().")
    is_iterable = isinstance(parameters, Iterable) and not isinstance(parameters, (Tensor, torch.nn.Module))
    given = list(parameters) if is_iterable else []
    strange = [f"one with {type(p).__name__}" for p in given if not isinstance(p, Tensor)]
    if not is_iterable or strange:
        raise TypeError(
            "Expected argument `parameters` to be an iterable of tensors, such as model.parameters(), but got "
            f"{strange[0] if strange else type(parameters).__name__}."
        )
    trained = [p for p in given if p.requires_grad]
    if not trained:
        raise ValueError("Expected argument `parameters` to hold a tensor that requires a gradient, but got none.")
    of_penalty, of_loss = (_gradient_size(value, trained) for value in (penalty_value, loss))
    if of_loss == 0:
        return math.inf if of_penalty > 0 else 0.0
    return of_penalty / of_loss


def _gradient_size(value: Tensor, parameters: list[Tensor]) -> float:
    if not value.requires_grad:
        return 0.0
    try:
        gradients = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        if "donated buffer" not in str(error):
            raise
        raise RuntimeError(
            "A compiled model frees what its backward needs, so that two cannot be taken. Compare the gradients with "
            "the module that was compiled, or once before it is."
        ) from error
    given = (g if g is None or g.layout == torch.strided else g.to_dense() for g in gradients)
    known = [torch.view_as_real(g) if g.is_complex() else g for g in given if g is not None and g.numel()]
    return math.hypot(*(float(scaled_norm(at_least_single(g).reshape(1, -1), 2)) for g in known))


def _batches(inputs: Tensor | Iterable[Any], batch_size: int) -> Iterator[Tensor]:
    if isinstance(inputs, Tensor):
        check_points("inputs", inputs)
        inputs = torch.split(inputs, batch_size)
    for batch in inputs:
        if isinstance(batch, Mapping):
            raise TypeError(
                "Expected argument `inputs` to give tensors, or tuples that begin with one, but got a batch of type "
                f'{type(batch).__name__}. Pick the tensor: (batch["x"] for batch in loader).'
            )
        x = batch[0] if isinstance(batch, (tuple, list)) else batch
        check_points("inputs", x)
        yield x


def _joined(batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """Let a row that is alone in its batch, and would have no partner there, join the batch before."""
    held: Tensor | None = None
    for x in batches:
        if held is not None and len(held) > 1 and len(x) == 1 and x.shape[1:] == held.shape[1:]:
            held = torch.cat([held, x])
            continue
        if held is not None:
            yield held
        held = x
    if held is not None:
        yield held


def _with_progress_bar(batches: Iterable[Tensor]) -> Iterable[Tensor]:
    try:
        from tqdm.auto import tqdm
    except ImportError:
        raise ImportError('`progress`=True needs tqdm: pip install "torchlipreg[progress]"') from None
    bar: Iterable[Tensor] = tqdm(batches, desc="lipschitz_lower_bound")
    return bar
