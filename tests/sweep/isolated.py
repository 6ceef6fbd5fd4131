"""A process that judges sample after sample, and is started anew where one hangs or kills it."""

import functools
import multiprocessing
import os
import resource
import time

MEMORY = 6 << 30  # bytes that a sample may take: more is an error in it, not in its neighbours
PATIENCE = 20  # times the limit that may pass on the wall


def work(connection):
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import torch

    from sweep.groups import GROUPS
    from sweep.judge import judge
    from sweep.sample import Skip

    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    while True:
        group, name, options = connection.recv()
        if name is None:
            try:
                connection.send(GROUPS[group].names())
            except (ImportError, Skip) as error:
                connection.send({"outcome": "skipped", "detail": str(error)})
        else:
            connection.send(judge(functools.partial(GROUPS[group].builds, name), **options))


def used_by(process):
    """Seconds of the processor that a process has had; None where that cannot be read."""
    try:
        with open(f"/proc/{process.pid}/stat", encoding="ascii") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Judge:
    """Judges in a process of its own, within a limit of processor seconds: the machine may be busy elsewhere."""

    def __init__(self, limit):
        self.limit, self.process = limit, None

    def ask(self, group, name=None, **options):
        """Return a sample's outcome; without a name, the names of a group's samples."""
        if self.process is None:
            context = multiprocessing.get_context("spawn")
            self.connection, theirs = context.Pipe()
            self.process = context.Process(target=work, args=(theirs,), daemon=True)
            self.process.start()
            theirs.close()
        try:
            self.connection.send((group, name, options))
            if self.answers():
                return self.connection.recv()
            answer = {"outcome": "skipped", "detail": f"takes longer than {self.limit:g} s"}
        except (EOFError, OSError):
            self.process.join()
            answer = {"outcome": "WRONG", "detail": f"the process ended with {self.process.exitcode}"}
        self.close()
        return answer

    def answers(self):
        """Wait for an answer, and say whether it came."""
        begun, wall = used_by(self.process), time.monotonic()
        while not self.connection.poll(min(5.0, self.limit)):
            used = used_by(self.process)
            seconds = time.monotonic() - wall if used is None or begun is None else used - begun
            if seconds > self.limit or time.monotonic() - wall > PATIENCE * self.limit:
                return False
        return True

    def close(self):
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process = None
