"""Checks of arguments: each names the argument, what was expected, what came, and the way out."""

from __future__ import annotations

import difflib
import functools
import inspect
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

from torch import Tensor

from torchlipreg.geometry.norms import NORMS
from torchlipreg.geometry.units import Units

P = ParamSpec("P")
T = TypeVar("T")
Normalization = tuple[float | Sequence[float], float | Sequence[float]]  # mean and std, each perhaps per channel


def suggest_names(function: Callable[P, None]) -> Callable[P, None]:
    """Let a constructor answer an unknown keyword with the nearest one that it has."""
    names = list(inspect.signature(function).parameters)

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> None:
        for name in kwargs:
            if name not in names:
                nearest = difflib.get_close_matches(name, names, 1, 0.0)[0]
                raise TypeError(
                    f"Unknown argument `{name}`. Did you mean `{nearest}`? There are {', '.join(names[1:])}."
                )
        function(*args, **kwargs)

    return checked


def check_choice(name: str, value: Any, choices: Sequence[Any]) -> None:
    """Raise ValueError unless ``value`` is one of ``choices``."""
    if isinstance(value, bool) or not isinstance(value, (str, numbers.Real)) or value not in choices:
        raise ValueError(f"Expected argument `{name}` to be one of {', '.join(map(repr, choices))}, but got {value!r}.")


def check_norm(name: str, p: Any) -> None:
    """Raise ValueError unless ``p`` is 1, 2 or ``math.inf``."""
    if isinstance(p, str):
        raise ValueError(f"Expected argument `{name}` to be 1, 2 or math.inf, a number, but got {p!r}.")
    check_choice(name, p, NORMS)


def check_number(name: str, value: Any, *, exclusive: bool = False) -> float:
    """Return ``value`` as a float; raise unless it is a finite real number ≥ 0 (> 0 if ``exclusive``)."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"Expected argument `{name}` to be a number, but got {value!r} ({type(value).__name__}).")
    if not math.isfinite(value) or value < 0 or (exclusive and value == 0):
        raise ValueError(
            f"Expected argument `{name}` to be finite and {'>' if exclusive else '>='} 0, but got {value!r}."
        )
    return float(value)


def check_count(name: str, value: Any, *, low: int = 1) -> int:
    """Return ``value`` as an int; raise unless it is an integer ≥ ``low``."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"Expected argument `{name}` to be an integer, but got {value!r} ({type(value).__name__}).")
    if value < low:
        raise ValueError(f"Expected argument `{name}` to be at least {low}, but got {value!r}.")
    return int(value)


def check_flag(name: str, value: Any) -> None:
    """Raise TypeError unless ``value`` is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"Expected argument `{name}` to be True or False, but got {value!r}.")


def check_mapping(name: str, value: Any) -> None:
    """Raise TypeError unless ``value`` is a mapping from strings or None."""
    if value is None:
        return
    strange = [key for key in value if not isinstance(key, str)] if isinstance(value, Mapping) else [value]
    if strange:
        raise TypeError(
            f"Expected argument `{name}` to be a dict from names to values, or None, but got "
            f"{'a key of ' if isinstance(value, Mapping) else ''}{type(strange[0]).__name__}."
        )


def check_instance(name: str, value: Any, kind: type[T]) -> T:
    """Return ``value``; raise TypeError unless it is an instance of a class."""
    if not isinstance(value, kind):
        article = "an" if kind.__name__[0] in "AEIOU" else "a"
        raise TypeError(f"Expected argument `{name}` to be {article} {kind.__name__}, but got {type(value).__name__}.")
    return value


def check_callable(name: str, value: Any, *, hint: str = "") -> None:
    """Raise TypeError unless ``value`` is callable."""
    if not callable(value):
        raise TypeError(f"Expected argument `{name}` to be callable, but got {type(value).__name__}.{hint}")


def check_function(name: str, value: Any) -> None:
    """Raise TypeError unless ``value`` is callable or None."""
    if not (value is None or callable(value)):
        raise TypeError(f"Expected argument `{name}` to be callable or None, but got {value!r}.")


def check_normalization(normalization: Any) -> Units | None:
    """Return (mean, std) as tuples of equal length, or None; raise otherwise."""
    if normalization is None:
        return None
    try:
        mean, std = (_numbers(values) for values in normalization)
    except (TypeError, ValueError):
        raise TypeError(
            "Expected argument `normalization` to be (mean, std), each a number or one number per channel, but got "
            f"{normalization!r}."
        ) from None
    if len(mean) == 1 or len(std) == 1:  # a number for all channels beside one for each
        length = max(len(mean), len(std))
        mean, std = (values * length if len(values) == 1 else values for values in (mean, std))
    if not mean or len(mean) != len(std) or not all(map(math.isfinite, mean)):
        raise ValueError(
            "Expected argument `normalization` to hold as many finite means as standard deviations, but got "
            f"{len(mean)} and {len(std)}: {normalization!r}."
        )
    if not all(math.isfinite(s) and s > 0 for s in std):
        raise ValueError(f"Expected argument `normalization` to have finite std > 0, but got std={std!r}.")
    return Units(mean, std)


def _numbers(values: Any) -> tuple[float, ...]:
    if isinstance(values, Tensor):  # of shape (C,), (C, 1, 1) or (1, C, 1, 1), but not of the last of several axes
        if values.dim() > 2 and values.shape[-1] > 1:
            raise TypeError
        values = values.squeeze().tolist()
    values = [values] if isinstance(values, numbers.Real) else list(values)
    if any(isinstance(v, (bool, str)) or not isinstance(v, numbers.Real) for v in values):
        raise TypeError
    return tuple(float(v) for v in values)


def check_bounds(bounds: Any, units: Units | None = None) -> tuple[float, float] | None:
    """Return ``bounds`` as two floats (lo < hi) or None; raise otherwise, or if they look like normalised units."""
    if bounds is None:
        return None
    try:
        low, high = _numbers(bounds)
    except (TypeError, ValueError):
        raise TypeError(f"Expected argument `bounds` to be two numbers (lo, hi), but got {bounds!r}.") from None
    if not low < high:  # also refuses NaN
        raise ValueError(f"Expected argument `bounds` to be (lo, hi) with lo < hi, but got {bounds!r}.")
    if units is not None and low < 0 < high and _are_near(low, high, units):
        raise ValueError(
            f"Expected argument `bounds` in raw units, (0, 1) for images, but got {bounds!r}, which look like those of "
            "normalised images: with `normalization`, radius, bounds and norms are told in raw units."
        )
    return low, high


def _are_near(low: float, high: float, units: Units) -> bool:
    """Say whether bounds are near those of images in [0, 1] after their normalisation."""
    ends = [((0 - m) / s, (1 - m) / s) for m, s in zip(units.mean, units.std, strict=True)]
    lowest, highest = min(a for a, _ in ends), max(b for _, b in ends)
    return lowest < 0 < highest and 0.7 < low / lowest < 1.5 and 0.7 < high / highest < 1.5


def check_state_keys(state: Any, keys: set[str], owner: str, *, may_be_none: str | None = None) -> None:
    """Raise ValueError unless ``state`` is a dict with these keys and numbers as values; one of them may be None."""
    if not isinstance(state, dict) or set(state) != keys:
        got = sorted(map(str, state)) if isinstance(state, dict) else type(state).__name__
        raise ValueError(f"Expected argument `state` to be a state of {owner} with keys {sorted(keys)}, but got {got}.")
    for name, value in state.items():
        if value is None and name == may_be_none:
            continue
        if not (isinstance(value, numbers.Real) and math.isfinite(value)):
            raise ValueError(f"Expected argument `state` to hold a finite number as {name!r}, but got {value!r}.")
