"""lipschitz_lower_bound: how steep is a trained model, over a data set?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from torchlipreg.ascent import Power, ascend
from torchlipreg.checks import check_bounds, check_count, check_norm, check_number, check_points, check_values
from torchlipreg.frozen import fixed_function
from torchlipreg.modules import compute_dtype
from torchlipreg.norms import batch_norm, norm_gradient, rescale
from torchlipreg.objective import pair_differences
from torchlipreg.pairs import PairSet, draw_from_data, draw_in_ball
from torchlipreg.quotient import distance_floor, quotient

SHRINK = 0.01  # from the distance of two data points to this part of it, geometrically over the steps


def lipschitz_lower_bound(
    model: Callable[[Tensor], Any],
    inputs: Tensor | Iterable[Any],
    *,
    radius: float | None = None,
    input_norm: float = 2,
    output_norm: float = 2,
    steps: int = 20,
    bounds: tuple[float, float] | None = None,
    output: Callable[[Any], Any] | None = None,
    batch_size: int = 256,
    seed: int = 0,
    progress: bool = False,
) -> float:
    """Return the largest difference quotient found around the points of a data set.

    Each point is paired with another; power steps turn the partner to where the quotient is largest. With
    ``radius=None`` partners start at other data points and come closer from step to step, so that quotients at all
    scales are seen; with a number they stay at that distance. The model is measured as a fixed function (eval mode,
    float32) and left as it was. The result is a lower bound on the Lipschitz constant, not a certificate.

    Args:
        model: Function or ``nn.Module``; may be wrapped or compiled.
        inputs: A floating tensor, shape (N, *), or an iterable of batches: tensors, or tuples that begin with one.
        radius: ε ≥ 0 in the input norm and the input's units, or None. 0 is the directional derivative.
        input_norm: 1, 2 or ``math.inf``.
        output_norm: 1, 2 or ``math.inf``.
        steps: Power steps for each pair, ≥ 1.
        bounds: (lo, hi) of the data: points stay inside.
        output: From the model's return value to the tensor that counts, as in ``LipschitzPenalty``.
        batch_size: Rows at a time of an ``inputs`` tensor.
        seed: Of the starting pairs.
        progress: Show a progress bar (needs tqdm).

    Returns:
        The largest quotient, in output units per input unit.

    Raises:
        TypeError: If ``inputs`` does not give floating tensors.
        ValueError: If an argument is out of range, the data are not finite or lie outside ``bounds``, or no batch
            holds the two points that ``radius=None`` needs.
        ImportError: If ``progress`` is asked for and tqdm is not installed.

    References:
        Report, eq. (3) and Definition 1.
    """
    check_norm("input_norm", input_norm)
    check_norm("output_norm", output_norm)
    steps, bounds = check_count("steps", steps), check_bounds(bounds)
    batch_size = check_count("batch_size", batch_size)
    if radius is not None:
        radius = check_number("radius", radius)
    batches: Iterable[Tensor] = _batches(inputs, batch_size)
    if progress:
        batches = _with_progress_bar(batches)
    largest = None
    for x in batches:
        if radius is None and len(x) < 2:
            continue
        generator = torch.Generator(x.device).manual_seed(seed)
        found = _largest_quotient(model, x, radius, input_norm, output_norm, steps, bounds, output, generator)
        largest = found if largest is None else torch.maximum(largest, found)
    if largest is None:
        raise ValueError(
            "Expected argument `inputs` to hold a batch with two points or more, from which `radius`=None makes "
            "pairs, but got none. Give larger batches, or a `radius`."
        )
    return float(largest)


def _largest_quotient(
    model: Callable[[Tensor], Any],
    x: Tensor,
    radius: float | None,
    input_norm: float,
    output_norm: float,
    steps: int,
    bounds: tuple[float, float] | None,
    output: Callable[[Any], Any] | None,
    generator: torch.Generator,
) -> Tensor:
    check_values(x, bounds)
    x = x.detach().to(torch.promote_types(x.dtype, torch.float32))
    floor = distance_floor(compute_dtype(model, x), float(batch_norm(x, input_norm).mean()))
    limit = radius is not None and radius < floor
    shrink = SHRINK ** (1 / steps) if radius is None else 1.0
    if radius is None:
        pairs = draw_from_data(x, len(x), generator)
    else:
        pairs = draw_in_ball(x, 1.0 if limit else radius, input_norm, generator, on_sphere=True)
    found = x.new_zeros(())
    smallest = torch.finfo(x.dtype).tiny if limit else floor

    def project(pairs: PairSet) -> PairSet:
        if limit:
            return PairSet(pairs.x, pairs.x + rescale(pairs.x_prime - pairs.x, 1.0, input_norm))
        return PairSet(pairs.x, pairs.x + shrink * (pairs.x_prime - pairs.x)).clamp(bounds, anchored=True)

    with fixed_function(model, output, eager=limit) as f:
        with torch.no_grad():
            fx = None if limit else f(pairs.x)

        def objective(pairs: PairSet) -> tuple[Tensor, Tensor]:
            nonlocal found
            difference = pair_differences(f, pairs, fx, limit=limit)
            fixed, distance = difference.detach(), pairs.distance(input_norm).detach()
            found = torch.maximum(found, quotient(fixed, distance, smallest, output_norm).amax())
            return difference, norm_gradient(fixed, output_norm)

        rule = Power(input_norm, anchored=True)
        pairs, _ = ascend(pairs, {}, rule, objective, steps=steps, anchored=True, project=project)
        with torch.no_grad():
            objective(pairs)
    return found


def _batches(inputs: Tensor | Iterable[Any], batch_size: int) -> Iterator[Tensor]:
    if isinstance(inputs, Tensor):
        check_points("inputs", inputs)
        inputs = torch.split(inputs, batch_size)
    for batch in inputs:
        x = batch[0] if isinstance(batch, (tuple, list)) else batch
        check_points("inputs", x)
        yield x


def _with_progress_bar(batches: Iterable[Tensor]) -> Iterable[Tensor]:
    try:
        from tqdm.auto import tqdm
    except ImportError:
        raise ImportError('`progress`=True needs tqdm: pip install "torchlipreg[progress]"') from None
    bar: Iterable[Tensor] = tqdm(batches, desc="lipschitz_lower_bound")
    return bar
