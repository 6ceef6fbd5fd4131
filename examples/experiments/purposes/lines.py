"""The line of a recipe, as a user would write it: its weight counts movements over its radius."""

import inspect
import math

from torchlipreg import LipschitzPenalty

DEFAULTS = {name: of.default for name, of in inspect.signature(LipschitzPenalty).parameters.items()}
WIDTH = 120  # as ruff formats blocks of Markdown


def line(penalty):
    """Return `penalty = LipschitzPenalty(…)` for a recipe's arguments, without those that are defaults.

    The scale goes into the weight, as users leave it at the radius: weight · (scale · q)² stays what it was.
    """
    of = {"scale": penalty["radius"]} | penalty
    weight = of.pop("weight") * (of.pop("scale") / of["radius"]) ** of.get("exponent", 2)
    method, radius = of.pop("method"), of.pop("radius")
    words = [f'"{method}"', f"weight={weight:.12g}", f"radius={_number(radius)}"]
    words += [f"{name}={_word(value)}" for name, value in of.items() if value != DEFAULTS[name]]
    whole = f"penalty = LipschitzPenalty({', '.join(words)})"
    if len(whole) <= WIDTH:
        return whole
    return f"penalty = LipschitzPenalty(\n    {', '.join(words)}\n)"


def _number(value):
    pixels = 255 * value
    return f"{pixels:.0f} / 255" if math.isclose(pixels, round(pixels), abs_tol=1e-9) and value < 1 else f"{value:g}"


def _word(value):
    return getattr(value, "__name__", None) or repr(value)


def imports(*blocks):
    """The import lines that the names in some blocks of code need."""
    text = "\n".join(blocks)
    of_package = [name for name in ("LipschitzPenalty", "WeightWarmup") if f"{name}(" in text]
    of_outputs = [name for name in ("root_probabilities", "smallest_margins") if name in text]
    found = [f"from torchlipreg import {', '.join(of_package)}"] if of_package else []
    return found + ([f"from torchlipreg.outputs import {', '.join(of_outputs)}"] if of_outputs else [])
