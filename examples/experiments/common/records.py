"""Runs that each keep one file: what is there stays, what is missing is made, on one process or several."""

import json
import multiprocessing
import operator
from concurrent.futures import ProcessPoolExecutor, as_completed

from tqdm import tqdm

from examples.experiments.common.files import write_json
from examples.experiments.common.versions import made_by


def read(job):
    """Return the record of a job that has `path` and `settings()`, None where it is missing or of other settings."""
    if not job.path.exists():
        return None
    record = json.loads(job.path.read_text(encoding="utf-8"))
    return record if record["settings"] == job.settings() else None


def make_all(jobs, workers, command):
    """Make what is missing, in the order given; a job's `make()` returns numbers by name."""
    todo = [job for job in jobs if read(job) is None]
    with tqdm(total=len(jobs), initial=len(jobs) - len(todo), unit="run") as bar:
        for job, values in as_they_end(operator.methodcaller("make"), todo, workers):
            about = {"settings": job.settings(), "seed": job.seed, "made": made_by(command)}
            write_json(job.path, about | {"values": values})
            bar.update()


def as_they_end(run, jobs, workers):
    """Give each job with what `run(job)` returned, from one process or several; a failure cancels the rest."""
    if workers == 1 or len(jobs) < 2:
        for job in jobs:
            yield job, run(job)
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        running = {pool.submit(run, job): job for job in jobs}
        try:
            for future in as_completed(running):
                yield running[future], future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
