from __future__ import annotations

import pytest
from worker_pool import Pool


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
