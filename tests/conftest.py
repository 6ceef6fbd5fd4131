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


def pytest_collection_modifyitems(items):
    """Mark by place, and by the words in a test's name, what `make check` leaves out."""
    for item in items:
        if {"experiments", "examples"} & set(item.path.parts):
            item.add_marker(pytest.mark.experiment)
        if item.path.stem == "test_compile" or "compil" in item.name:
            item.add_marker(pytest.mark.compiler)
