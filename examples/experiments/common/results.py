"""The results files: one CSV row for each model, and a JSON that says what made them."""

import csv
import json
import platform
from pathlib import Path

import torch

from examples.experiments.common.files import write, write_json
from examples.experiments.common.versions import today, versions

PUBLISHED = Path(__file__).parents[1] / "results"  # what the documentation's tables are made from
KEYS = ("network", "recipe", "seed")


class Results:
    """Rows, and what is known of each recipe.

    `rows` have network, recipe, seed and numbers by name; `meta` has the command, versions, date, and the label,
    settings and step time of each network's recipes.
    """

    def __init__(self, rows, meta):
        self.rows, self.meta = rows, meta

    @property
    def clock(self):
        """What step times are: a GPU's own, or the work of one core."""
        return "GPU time" if self.meta.get("device") == "cuda" else "CPU time"

    def networks(self):
        return list(dict.fromkeys(row["network"] for row in self.rows))

    def recipes(self, network):
        return [name for name in self.meta["recipes"][network] if self.of(network, name)]

    def label(self, network, recipe):
        return self.meta["recipes"][network][recipe]["label"]

    def of(self, network, recipe):
        return [row for row in self.rows if (row["network"], row["recipe"]) == (network, recipe)]

    def numbers(self, network, recipe, name):
        """One for each seed that has it."""
        return [row[name] for row in self.of(network, recipe) if name in row]

    def step_time(self, network, recipe):
        """Lower quartile, median, upper quartile of the ratio to plain training; None where it was not measured."""
        return self.meta["recipes"][network][recipe].get("step time", {}).get("ratio")


def collect(jobs, folder, command):
    """Results of the jobs that are done as they are set now, with their step times where these were taken."""
    records = [(job, record) for job in jobs if (record := job.record())]
    rows = [dict(zip(KEYS, (job.network, job.name, job.seed), strict=True)) | rec["values"] for job, rec in records]
    recipes = {}
    for job, _ in records:
        described = {"label": job.recipe.label} | job.settings()
        times = read_times(folder, job.network).get(job.name, {})
        if times.pop("settings", None) == job.recipe.settings():
            described["step time"] = times
        recipes.setdefault(job.network, {})[job.name] = described
    on_gpu = jobs[0].experiment.device == "cuda"
    meta = {
        "command": command,
        "date": today(),
        "versions": versions(),
        "processor": torch.cuda.get_device_name()
        if on_gpu
        else f"{platform.machine()}, {torch.get_num_threads()} thread",
        **({"device": "cuda"} if on_gpu else {}),
        "images": f"{jobs[0].split} images of {jobs[0].experiment.images[jobs[0].quick]}",
        "recipes": recipes,
    }
    return Results(rows, meta)


def with_earlier(results, earlier, jobs):
    """Add what an earlier collection holds of these jobs, as they are set now, and this one lacks."""
    fresh, known = ({tuple(row[key] for key in KEYS): row for row in of.rows} for of in (results, earlier))
    rows, recipes = [], {}
    for job in jobs:
        key, described = (job.network, job.name, job.seed), _described(earlier, job)
        if key in fresh:
            rows.append(fresh[key])
            described |= _described(results, job)
        elif key in known and described:
            rows.append(known[key])
        else:
            continue
        recipes.setdefault(job.network, {}).setdefault(job.name, described)
    return Results(rows, results.meta | {"recipes": recipes})


def _described(results, job):
    """What is known of a job's recipe, nothing where that was set in another way."""
    described = results.meta["recipes"].get(job.network, {}).get(job.name, {})
    settings = {name: value for name, value in described.items() if name not in ("label", "step time")}
    return dict(described) if settings == json.loads(json.dumps(job.settings())) else {}


def read_times(folder, network):
    """Step times by recipe, as timing.py takes them, with the settings that they belong to."""
    path = times_path(folder, network)
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def times_path(folder, network):
    return Path(folder) / f"times-{network}.json"


def save(results, folder, name):
    columns = list(dict.fromkeys(column for row in results.rows for column in row))
    folder = Path(folder)

    def write_rows(path):
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(results.rows)

    write(folder / f"{name}.csv", write_rows)
    write_json(folder / f"{name}.json", results.meta)


def read(folder, name):
    folder = Path(folder)
    with (folder / f"{name}.csv").open(newline="") as file:
        rows = [{k: _number(k, v) for k, v in row.items() if v != ""} for row in csv.DictReader(file)]
    return Results(rows, json.loads((folder / f"{name}.json").read_text(encoding="utf-8")))


def _number(name, text):
    return text if name in KEYS[:2] else int(text) if name == "seed" else float(text)
