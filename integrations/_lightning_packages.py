"""Which of Lightning's two packages, lightning and pytorch_lightning, is there: a callback is one of its own only."""

from __future__ import annotations

import importlib
import sys

PACKAGES = ("lightning.pytorch", "pytorch_lightning")


def callback_base() -> type:
    """Return a class that is a Callback of each package that is imported, else of one that is installed.

    Raises:
        ImportError: If none is installed.
    """
    names = [name for name in PACKAGES if sys.modules.get(name)] or [_installed()]
    return type("_Callback", tuple(importlib.import_module(name).Callback for name in names), {})


def _installed() -> str:
    for name in PACKAGES:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name not in (name, name.partition(".")[0]):
                raise
        else:
            return name
    raise ImportError("torchlipreg.integrations.lightning needs Lightning: pip install 'torchlipreg[lightning]'.")
