"""Notices: warnings at the line of the user's that called the library."""

from __future__ import annotations

import sys
import warnings

from torchlipreg.distributed import rank


def warn_user(message: str) -> None:
    """Warn, pointing at the line that called the library."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("torchlipreg."):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


def warn_first_rank(message: str) -> None:
    """Warn on rank 0 alone, for what is the same on all."""
    if rank() == 0:
        warn_user(message)
