"""Trainings and their measures, one after another or on several processes, each result kept in a file of its own.

A sweep that was stopped goes on where it was. A recipe or a measure whose settings have changed is run anew.
"""

import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from examples.experiments.common.experiment import Data, Experiment
from examples.experiments.common.files import write, write_json
from examples.experiments.common.measures import accuracy
from examples.experiments.common.recipes import Recipe, as_first_recorded
from examples.experiments.common.records import as_they_end
from examples.experiments.common.training import train
from examples.experiments.common.versions import made_by


@dataclass(frozen=True)
class Job:
    """One model, and what is to be measured of it."""

    experiment: Experiment
    network: str
    name: str
    recipe: Recipe
    seed: int
    measures: tuple
    data: str
    split: str
    quick: bool
    out: Path
    command: str = ""  # for the record

    @property
    def path(self):
        return self.out / f"{self.network}-{self.name}-{self.seed}.json"

    def settings(self):
        of = self.experiment
        epochs = of.number_of_epochs(self.network, self.quick)
        training = {"epochs": epochs, "batch": of.batch, "learning_rate": of.learning_rate}
        return self.recipe.settings() | training | of.stated | {"split": self.split, "quick": self.quick}

    def fingerprint(self):
        words = json.dumps([self.network, self.seed, as_first_recorded(self.settings(), self.recipe)], sort_keys=True)
        return hashlib.sha256(words.encode()).hexdigest()[:16]

    def record(self):
        """What is stored of this job: nothing where its recipe has changed since."""
        record = json.loads(self.path.read_text()) if self.path.exists() else {}
        return record if record.get("fingerprint") == self.fingerprint() else {}

    def missing(self):
        done = self.record().get("done", {})
        return [measure for measure in self.measures if done.get(measure) != self.experiment.measures[measure].settings]


def run(job):
    """Train where no model is stored, measure what is missing, and say what came out."""
    torch.set_num_threads(1)
    experiment = job.experiment
    data = Data(*(part.to(experiment.device) for part in experiment.load(job.data, job.split, job.quick)))
    weights = job.path.with_suffix(".pt")
    record = job.record()
    if record and weights.exists():
        model = experiment.build(job.network, job.quick).to(experiment.device).eval().requires_grad_(False)
        model.load_state_dict(torch.load(weights, weights_only=True, map_location=experiment.device))
    else:
        start = time.perf_counter()
        model = train(experiment, job.network, job.recipe, job.seed, data, job.quick)
        values = {"train seconds": round(time.perf_counter() - start, 1)}
        values["train accuracy"] = accuracy(model, data.train_x[:10_000], data.train_y[:10_000])
        about = {
            "fingerprint": job.fingerprint(),
            "settings": job.settings(),
            "seed": job.seed,
            "made": made_by(job.command),
        }
        record = about | {"device": experiment.device, "values": values, "done": {}}
        job.path.unlink(missing_ok=True)  # old numbers must never stand beside new weights
        write(weights, lambda path: torch.save(model.state_dict(), path))
    for measure in job.missing():
        start = time.perf_counter()
        found = experiment.measures[measure].function(model, data.x, data.y, job.quick)
        record["values"] |= {name: round(value, 6) for name, value in found.items()}
        record["values"][f"{measure} seconds"] = round(time.perf_counter() - start, 1)
        record["done"][measure] = experiment.measures[measure].settings
        write_json(job.path, record)
    return record["values"]


def sweep(jobs, workers):
    """Run what is not done yet, in the order given, and tell of each as it ends."""
    todo = [job for job in jobs if job.missing()]
    with tqdm(total=len(jobs), initial=len(jobs) - len(todo), unit="model") as bar:
        for job, values in as_they_end(run, todo, workers):
            shown = ("clean", "pgd linf 0.1", "apgd linf 0.1", "autoattack linf 0.1")
            numbers = ", ".join(f"{name} {values[name]:.3f}" for name in shown if name in values)
            bar.write(f"{job.network}, {job.recipe.label}, seed {job.seed}: {numbers}")
            bar.update()
