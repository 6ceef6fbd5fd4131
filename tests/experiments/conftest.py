"""What the tests of an experiment share."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def _importable(request):
    """Let a test file import the module that it names in EXPERIMENT, without a display; else skip its tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPLBACKEND", "agg")
        patch.syspath_prepend(str(ROOT))
        if name := getattr(request.module, "EXPERIMENT", None):
            pytest.importorskip(name, exc_type=ImportError)
        yield
