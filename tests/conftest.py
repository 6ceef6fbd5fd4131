import socket

import pytest
import torch


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
