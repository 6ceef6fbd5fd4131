"""The launcher's command line: a ``--lip-*`` flag for every argument of ``LipschitzPenalty``, and for the schedules."""

from __future__ import annotations

import argparse
import difflib
import inspect
import os
import pkgutil
import re
import types
import typing
from collections.abc import Sequence
from typing import Any, NamedTuple

from torchlipreg import LipschitzPenalty
from torchlipreg.checks import Normalization
from torchlipreg.integrations._timm_schedules import OPTIONS, Schedules

PROGRAM = "python -m torchlipreg.integrations.timm"
PREFIXES = ("--lip-", "--no-lip-")
_NUMBER = r"-?(?:(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|inf)"
_FRACTION = rf"{_NUMBER}(?:/{_NUMBER})?"
NEGATIVE = re.compile(rf"^(?=-){_FRACTION}(?:,{_FRACTION})*$")  # as ``numbers`` reads them, from one below zero on


class CommandLine(NamedTuple):
    """What the launcher was told.

    Attributes:
        script: The training script.
        arguments: Its arguments.
        penalty: Arguments for ``LipschitzPenalty``, checked.
        schedules: Options for :class:`Schedules`, checked.
    """

    script: str
    arguments: list[str]
    penalty: dict[str, Any]
    schedules: dict[str, Any]


def parse(arguments: Sequence[str]) -> CommandLine:
    """Split a command line: the script, its arguments and ``--lip-*`` options, in any order."""
    parser = make_parser()
    namespace, rest = parser.parse_known_args(arguments)
    options = vars(namespace)
    schedules = {name: options.pop(name) for name in OPTIONS if name in options}
    for argument in rest:
        flag = argument.split("=")[0]
        if flag.startswith(PREFIXES):
            close = difflib.get_close_matches(flag, parser._option_string_actions, n=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            parser.error(f"unrecognized option {flag}.{hint} --lip-help lists them.")
    if not rest or rest[0].startswith("-"):
        parser.error("expected a training script, such as timm's train.py, before its arguments.")
    if not os.path.isfile(rest[0]):
        parser.error(f"no such training script: {rest[0]}")
    try:
        Schedules(LipschitzPenalty(**options), schedules)
    except (TypeError, ValueError) as error:
        parser.error(str(error))
    return CommandLine(rest[0], rest[1:], options, schedules)


def make_parser() -> argparse.ArgumentParser:
    """Return a parser with a flag for every argument of ``LipschitzPenalty`` and for the schedules.

    Flags that are not given leave no trace.
    """
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        usage="%(prog)s train.py [train.py's arguments] [--lip-* options]",
        description="Train with timm's train.py and a Lipschitz penalty. Other arguments, --help included, go to it.",
        argument_default=argparse.SUPPRESS,
        add_help=False,
        allow_abbrev=False,
    )
    # Without a public way to say it: argparse takes what begins with a minus for an option, but for numbers like -0.5.
    parser._negative_number_matcher = NEGATIVE
    parser.add_argument("--lip-help", action="help", help="show these options and exit")
    descriptions = _argument_descriptions(LipschitzPenalty)
    types = typing.get_type_hints(LipschitzPenalty.__init__)
    for name, parameter in inspect.signature(LipschitzPenalty).parameters.items():
        description = descriptions.get(name, "").replace("%", "%%")
        default = "" if parameter.default is None else f" (default {parameter.default})"
        parser.add_argument(
            f"--lip-{name.replace('_', '-')}", dest=name, help=description + default, **_argparse_type(types[name])
        )
    for name, option in OPTIONS.items():
        flag, count = f"--lip-{name.replace('_', '-')}", len(option.numbers)
        parser.add_argument(flag, dest=name, help=option.description, type=number, nargs=count, metavar=option.numbers)
    return parser


def _argparse_type(hint: Any) -> dict[str, Any]:
    kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)] if _is_union(hint) else [hint]
    kind = kinds[0]
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    if typing.get_origin(kind) is typing.Literal:
        choices = typing.get_args(kind)
        return {"type": type(choices[0]), "choices": choices}
    if kind is Normalization:
        return {"type": numbers, "nargs": 2, "metavar": ("MEAN[,MEAN...]", "STD[,STD...]")}
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)
        return {"type": number, "nargs": len(inner), "metavar": "X"}
    if kind is float:
        return {"type": number, "metavar": "NUMBER"}
    if kind is int:
        return {"type": int, "metavar": "INT"}
    return {"type": _imported, "metavar": "MODULE:NAME"}


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def number(text: str) -> float:
    """Return a number, which may be a fraction: "8/255"."""
    numerator, slash, denominator = text.partition("/")
    if slash and float(denominator) == 0:
        raise ValueError("a fraction of nothing")
    return float(numerator) / float(denominator) if slash else float(text)


def numbers(text: str) -> tuple[float, ...]:
    """Return numbers that commas separate: "0.485,0.456,0.406"."""
    return tuple(number(part) for part in text.split(","))


def _imported(name: str) -> Any:
    try:
        return pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"expected the name of a function, package.module:name; {error}") from None


def _argument_descriptions(documented: type) -> dict[str, str]:
    """Return the text on each argument in the ``Args:`` section of a docstring."""
    section = re.search(r"\n    Args:\n(.*?)\n\n", documented.__doc__ or "", re.DOTALL)
    entries = re.findall(r"^ {8}(\w+): (.*?)(?=\n {8}\w|\Z)", section[1], re.DOTALL | re.MULTILINE) if section else []
    return {name: " ".join(re.sub(r"``|:\w+:|`|math\.", "", text).split()) for name, text in entries}
