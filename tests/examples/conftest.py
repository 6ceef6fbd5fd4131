import pytest
from scripts import end, launch


@pytest.fixture
def start(cpu_environment, tmp_path):
    """Start commands; whatever still runs when the test is over is ended."""
    processes = []

    def start(*command):
        processes.append(launch(command, {**cpu_environment, "COLUMNS": "120"}, tmp_path))
        return processes[-1]

    yield start
    for process in processes:
        end(process)
        process.stdout.close()
