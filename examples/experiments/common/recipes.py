"""A way to train: a loss, perhaps a penalty, and how its weight changes."""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field

from examples.experiments.common.rivals import plain
from torchlipreg import LipschitzPenalty

SCHEDULE = ("weight_fall", "discrepancy")  # how the penalty is applied
STATED = {"radius", "input_norm", "scale"}  # what a weight means depends on them, so that no default is relied upon
FIRST_WORDS = (
    *("weight", "radius", "num_pairs", "choose", "input_norm", "output_norm", "power", "ascent", "ascent_steps"),
    *("step_size", "momentum", "anchored", "bounds", "noise", "interval", "output", "seed"),
)


@dataclass(frozen=True)
class Recipe:
    label: str
    loss: Callable = plain  # of rivals.py, or of a file of its own
    arguments: dict = field(default_factory=dict)  # of the loss
    penalty: dict | None = None  # arguments of LipschitzPenalty, which is added to the loss
    weight_fall: float = 1.0  # factor of the penalty's weight over the whole training, in equal steps
    discrepancy: dict | None = None  # arguments of DiscrepancyWeight, stepped by the running training accuracy

    def __post_init__(self):
        asked = self._schedule()
        if asked and self.penalty is None:
            raise ValueError(f"Expected a `penalty` for {', '.join(asked)}, but got none.")
        if self.discrepancy is not None and self.loss is not plain:
            raise ValueError("Expected the plain loss, whose outputs `discrepancy` looks at, but got another.")
        if self.penalty is not None and (missing := STATED - self.penalty.keys()):
            raise ValueError(f"Expected a `penalty` that states {', '.join(sorted(missing))}.")

    def settings(self):
        """What the training depends on, defaults included, in words."""
        bound = inspect.signature(self.loss).bind("model", "x", "y", **self.arguments)
        bound.apply_defaults()
        arguments = ", ".join(f"{name}={value!r}" for name, value in list(bound.arguments.items())[3:])
        words = {"loss": f"{self.loss.__name__}({arguments})"}
        if self.penalty is not None:
            words["penalty"] = repr(LipschitzPenalty(**self.penalty))
        return words | {name: str(value) for name, value in self._schedule().items()}

    def _schedule(self):
        """What differs from the defaults, which a dataclass keeps on the class."""
        return {name: value for name in SCHEDULE if (value := getattr(self, name)) != getattr(Recipe, name)}


def as_first_recorded(settings, recipe):
    """The same settings in the words that the first records hold, so that these are found by their fingerprints.

    `exponent` was called `power` then, and there was no `scale`: quotients were bare, which scale=1 says now.
    """
    if recipe.penalty is None:
        return settings
    of = LipschitzPenalty(**recipe.penalty).settings.arguments() | {"weight": float(recipe.penalty["weight"])}
    if of["scale"] != 1 or of["normalization"] is not None or of["one_sided"]:
        return settings
    of |= {"power": of["exponent"], "anchored": recipe.penalty.get("anchored", True)}
    words = (f"{name}={getattr(of[name], '__qualname__', repr(of[name]))}" for name in FIRST_WORDS)
    return settings | {"penalty": f"LipschitzPenalty({of['method']!r}, {', '.join(words)})"}


def flip(label, method, weight, loss=plain, arguments=None, **options):
    """A recipe with a penalty against attacks bounded in ℓ∞, with the weight of bare quotients."""
    schedule = {name: options.pop(name) for name in SCHEDULE if name in options}
    radius = 0.1 if method in ("tv", "ptv") else None
    penalty = {"method": method, "weight": weight, "radius": radius, "input_norm": math.inf, "scale": 1} | options
    return Recipe(label, loss, arguments or {}, penalty, **schedule)
