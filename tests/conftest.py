import gc
import os
import socket
from pathlib import Path

import pytest
import torch

try:
    from hypothesis import HealthCheck, settings
except ImportError:
    pass  # whose tests skip themselves
else:
    # Here, as --hypothesis-profile looks a name up before any test is imported.
    QUIET = {"deadline": None, "suppress_health_check": list(HealthCheck)}
    settings.register_profile("suite", max_examples=60, derandomize=True, **QUIET)
    settings.register_profile("hour", max_examples=20_000, **QUIET)
    settings.load_profile("suite")


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    # The models here are tiny: a second thread costs more than it gives, and reorders sums.
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture
def cpu_environment():
    """The environment of a launched script: no GPU, one thread in each process."""
    return {**os.environ, "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}


def pytest_collection_modifyitems(items):
    """Mark by folder what `make check` leaves out, so that no new test there is forgotten."""
    here = Path(__file__).parent
    marks = {"experiments": pytest.mark.experiment, "examples": pytest.mark.experiment}
    marks |= {"distributed": pytest.mark.distributed}
    for item in items:
        folder = item.path.relative_to(here).parts[0] if item.path.is_relative_to(here) else None
        if folder in marks:
            item.add_marker(marks[folder])


def pytest_collection_finish():
    # What the imports made stays. Looked through in each collection, it would cost the suite a tenth of its time.
    gc.collect()
    gc.freeze()
