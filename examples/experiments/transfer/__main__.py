"""What the default does to your data: the one line with nothing set, its weight ÷ 10 and × 10, beside plain training.

    python -m examples.experiments.transfer --data FOLDER --workers 2

Data and networks that the default was not tuned on. A stopped experiment goes on where it was; `--quick` only shows
that it runs. Records are kept in --out, one file each; tables are made from them.
"""

import argparse
import datetime
import json
import multiprocessing
import os
import statistics
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from examples.experiments.common import cifar
from examples.experiments.common.files import write_json
from examples.experiments.common.tables import Table, markdown, per_cent, print_tables, spread
from examples.experiments.transfer.runs import SETTINGS, Run, run
from examples.experiments.transfer.subjects import SUBJECTS
from torchlipreg import LipschitzPenalty


def options_from(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=os.environ.get("TORCHLIPREG_DATA", "out/data"), help="folder of the data")
    parser.add_argument("--out", type=Path, default=Path("out/transfer"), help="where records and tables are kept")
    parser.add_argument("--subjects", nargs="+", choices=SUBJECTS, default=list(SUBJECTS))
    parser.add_argument("--method", choices=("max", "sum", "tv", "ptv"), default="tv")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1, help="processes, of one thread each")
    parser.add_argument("--collect", action="store_true", help="train nothing, show what is there")
    parser.add_argument("--quick", action="store_true", help="an epoch on few rows, one seed")
    return parser.parse_args(arguments)


def record_of(job, options):
    return options.out / f"{job.subject}-{job.method}-{SETTINGS.index(job.setting)}-{job.seed}.json"


def train_all(jobs, options):
    """Train what has no record yet; a record belongs to the settings that made it."""
    todo = [job for job in jobs if read(job, options) is None]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.workers, context) as pool:
        running = {pool.submit(partial(run, job, options.data, options.quick)): job for job in todo}
        for future in tqdm(as_completed(running), total=len(todo), unit="training"):
            job = running[future]
            write_json(record_of(job, options), {"settings": settings(job), **future.result()})


def settings(job):
    return "plain" if job.setting == "plain" else repr(job.penalty())


def read(job, options):
    path = record_of(job, options)
    record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return record if record.get("settings") == settings(job) else None


def table(jobs, options):
    """One row for each subject and setting: mean and spread over the seeds."""
    rows = []
    for subject in options.subjects:
        for setting in SETTINGS:
            of_row = [job for job in jobs if (job.subject, job.setting) == (subject, setting)]
            found = [record for job in of_row if (record := read(job, options))]
            if not found:
                continue
            shares = [record["share"] for record in found if record["share"] is not None]
            told = sorted({message for record in found for message in record["warnings"]})
            rows.append(
                [
                    SUBJECTS[subject].label if setting == "plain" else "",
                    setting,
                    str(len(found)),
                    per_cent([record["clean"] for record in found]),
                    per_cent([record["attacked"] for record in found if "attacked" in record]),
                    spread([record["movement"] for record in found], 2),
                    f"{statistics.median(shares):.2g}" if shares else "–",
                    "; ".join(told) or "–",
                ]
            )
    heading = ["data and network", "weight", "seeds", "clean", "attacked", "movement", "share", "told"]
    title = f"{options.method}: what the default does, mean ± standard deviation of the seeds"
    notes = (
        f"Default: {LipschitzPenalty(options.method)!r}. clean: accuracy in per cent, for the regression 100 R². "
        "attacked: accuracy under PGD within ℓ∞ 8/255 (20 steps) of the raw data. movement: how far the output moves "
        "at most within that, found by PGD, in output units. share: ‖∇ penalty‖ / ‖∇ loss‖, median."
    )
    return Table(title, heading, rows, notes)


def main(arguments=None):
    options = options_from(arguments)
    options.seeds = 1 if options.quick else options.seeds
    jobs = [  # what decides comes first, so that a part of the experiment is of use
        Run(subject, setting, seed, options.method)
        for part in (SETTINGS[:2], SETTINGS[2:])
        for seed in range(options.seeds)
        for subject in options.subjects
        for setting in part
    ]
    if not options.collect:
        train_all(jobs, options)
    made = table(jobs, options)
    print_tables([made])
    stamp = f"Made on {datetime.date.today().isoformat()} with torch {torch.__version__}, {cifar.name(options.data)}."
    path = options.out / f"transfer-{options.method}.md"
    path.write_text(f"{markdown(made)}\n\n{stamp}\n", encoding="utf-8")
    records = {record_of(job, options).stem: record for job in jobs if (record := read(job, options))}
    write_json(options.out / f"transfer-{options.method}.json", records)
    print(f"Table: {path}, with all records beside it")
    return made


if __name__ == "__main__":
    main()
