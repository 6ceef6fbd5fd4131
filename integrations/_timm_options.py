"""The launcher's command line: a ``--lip-*`` flag for every argument of ``LipschitzPenalty``."""

from __future__ import annotations

import argparse
import difflib
import inspect
import os
import pkgutil
import re
import typing
from collections.abc import Sequence
from typing import Any

from torchlipreg import LipschitzPenalty

PROGRAM = "python -m torchlipreg.integrations.timm"
PREFIXES = ("--lip-", "--no-lip-")


def parse(arguments: Sequence[str]) -> tuple[str, list[str], dict[str, Any]]:
    """Split a command line.

    Args:
        arguments: The script, its arguments and ``--lip-*`` options.

    Returns:
        The script, its arguments, and the arguments for ``LipschitzPenalty``, checked.
    """
    parser = make_parser()
    namespace, rest = parser.parse_known_args(arguments)
    options = vars(namespace)
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
        LipschitzPenalty(**options)
    except (TypeError, ValueError) as error:
        parser.error(str(error))
    return rest[0], rest[1:], options


def make_parser() -> argparse.ArgumentParser:
    """Return a parser with a flag for every argument of ``LipschitzPenalty``; flags not given leave no trace."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        usage="%(prog)s train.py [train.py's arguments] [--lip-* options]",
        description="Train with timm's train.py and a Lipschitz penalty. Other arguments, --help included, go to it.",
        argument_default=argparse.SUPPRESS,
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument("--lip-help", action="help", help="show these options and exit")
    descriptions = _argument_descriptions(LipschitzPenalty)
    types = typing.get_type_hints(LipschitzPenalty.__init__)
    for name, parameter in inspect.signature(LipschitzPenalty).parameters.items():
        description = descriptions.get(name, "").replace("%", "%%")
        default = "" if parameter.default is None else f" (default {parameter.default})"
        parser.add_argument(
            f"--lip-{name.replace('_', '-')}", dest=name, help=description + default, **_argparse_type(types[name])
        )
    return parser


def _argparse_type(hint: Any) -> dict[str, Any]:
    kinds = [kind for kind in typing.get_args(hint) or (hint,) if kind is not type(None)]
    kind = kinds[0]
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)
        return {"type": inner[0], "nargs": len(inner), "metavar": "X"}
    if kind in (int, float, str):
        return {"type": kind, "metavar": kind.__name__.upper()}
    return {"type": _imported, "metavar": "MODULE:NAME"}


def _imported(name: str) -> Any:
    try:
        return pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"expected the name of a function, package.module:name; {error}") from None


def _argument_descriptions(documented: type) -> dict[str, str]:
    """Return the text on each argument in the ``Args:`` section of a docstring."""
    section = re.search(r"\n    Args:\n(.*?)\n\n", documented.__doc__ or "", re.DOTALL)
    entries = re.findall(r"^ {8}(\w+): (.*?)(?=\n {8}\w|\Z)", section[1], re.DOTALL | re.MULTILINE) if section else []
    return {name: " ".join(re.sub(r"``|:\w+:|`", "", text).split()) for name, text in entries}
