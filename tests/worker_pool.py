"""Worker processes that are started once, run the functions they are handed, and can never make a test wait."""

from __future__ import annotations

import importlib.util
import multiprocessing
import multiprocessing.connection
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import pytest

TIMEOUT = 60  # seconds, for one function on all ranks; the slowest takes about ten


def load_module(path):
    """Import a test file in a worker, under the same name each time."""
    name = Path(path).stem
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def work(rank, size, store, connection):
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    while (job := connection.recv()) is not None:
        path, name, arguments = job
        torch.manual_seed(0)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                result = getattr(load_module(path), name)(rank, *arguments)
            connection.send((True, result))
        except BaseException:
            connection.send((False, traceback.format_exc()))
    dist.destroy_process_group()


class Pool:
    """``size`` processes in one gloo group. A failure or a timeout on any rank ends them all; the next run is new."""

    def __init__(self, size):
        self.size = size
        self.workers = []

    def run(self, function, *arguments, timeout=TIMEOUT):
        """Return ``[function(rank, *arguments) for each rank]``, run at the same time; fail after ``timeout``."""
        self.start()
        for _, connection in self.workers:
            connection.send((function.__code__.co_filename, function.__name__, arguments))
        deadline = time.monotonic() + timeout
        waiting, results = dict(enumerate(c for _, c in self.workers)), {}
        while waiting:
            for connection in multiprocessing.connection.wait(waiting.values(), max(0, deadline - time.monotonic())):
                rank = next(r for r, c in waiting.items() if c is connection)
                ok, results[rank] = self.receive(connection)
                del waiting[rank]
                if not ok:
                    self.stop()
                    pytest.fail(f"rank {rank} of {self.size}:\n{results[rank]}", pytrace=False)
            if waiting and time.monotonic() >= deadline:
                self.stop()
                pytest.fail(f"{function.__name__}: ranks {sorted(waiting)} had not finished after {timeout} s")
        return [results[rank] for rank in range(self.size)]

    @staticmethod
    def receive(connection):
        try:
            return connection.recv()
        except EOFError:
            return False, "the process died"

    def start(self):
        if self.workers:
            return
        store = Path(tempfile.mkdtemp()) / "store"
        context = multiprocessing.get_context("forkserver")  # torch is imported once, for all workers of all pools
        context.set_forkserver_preload(["torch._dynamo", "torch.distributed", "torchlipreg"])
        for rank in range(self.size):
            ours, theirs = context.Pipe()
            process = context.Process(target=work, args=(rank, self.size, store, theirs), daemon=True)
            process.start()
            theirs.close()
            self.workers.append((process, ours))

    def stop(self):
        for process, connection in self.workers:
            process.kill()
            process.join()
            connection.close()
        self.workers = []
