"""Notices: warnings at the line of the user's that called the library."""

from __future__ import annotations

import sys
import warnings


def warn_user(message: str) -> None:
    """Warn, pointing at the line that called the library."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("torchlipreg."):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)
