"""Start a script as a user would, wait for what it writes, kill it."""

from __future__ import annotations

import os
import signal
import subprocess
import time

TIMEOUT = 120  # seconds
# A thread of gloo that lets go of a tensor while Python shuts down (pytorch/pytorch#190489), after all work is done:
# on a busy machine in one of ten runs, with and without the penalty. Worth other runs, which write the same files.
ABORTED_AT_EXIT = "terminate called without an active exception"
ATTEMPTS = 5


def launch(command, environment, folder):
    return subprocess.Popen(
        list(map(str, command)),
        env=environment,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # so that it can be ended with its workers
    )


def end(process, how=signal.SIGTERM):
    if process.poll() is None:
        os.killpg(process.pid, how)
        process.wait(TIMEOUT)


def output(process, timeout=TIMEOUT):
    text, _ = process.communicate(timeout=timeout)
    assert process.returncode == 0, text[-4000:]
    return text


def output_once_spared(run):
    """Return the output of a run that gives its exit status and output, made anew where it is aborted at its end."""
    for _ in range(ATTEMPTS):
        status, text = run()
        if status == 0 or ABORTED_AT_EXIT not in text:
            break
    assert status == 0, text[-4000:]
    return text


def wait_for(path, process):
    deadline = time.monotonic() + TIMEOUT
    while not path.exists():
        assert process.poll() is None, process.communicate()[0][-4000:]
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.02)
