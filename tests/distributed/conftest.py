from __future__ import annotations

import os
from pathlib import Path

import pytest
from worker_pool import Pool


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.distributed)


@pytest.fixture(scope="session")
def pools():
    """Pools of 2 and 3 processes, started on first use."""
    pools = {size: Pool(size) for size in (2, 3)}
    yield pools
    for pool in pools.values():
        pool.stop()


@pytest.fixture
def two(pools):
    return pools[2]


@pytest.fixture(params=[2, 3])
def pool(request, pools):
    return pools[request.param]


@pytest.fixture
def cpu_environment():
    """The environment of a launched script: no GPU, one thread in each process."""
    return {**os.environ, "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
