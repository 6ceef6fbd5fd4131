"""Tables of some rows of the published records."""

import json
import tempfile
from pathlib import Path
from typing import NamedTuple

from examples.experiments.common.pages import made
from examples.experiments.common.results import PUBLISHED, Results, read
from examples.experiments.common.robustness import robustness
from examples.experiments.common.tables import Table
from examples.experiments.finetune import report
from examples.experiments.labels import __main__ as labels
from examples.experiments.labels import tables as of_labels
from examples.experiments.transfer import __main__ as transfer
from examples.experiments.transfer.runs import SETTINGS, Run
from examples.experiments.transfer.subjects import SUBJECTS


class Shown(NamedTuple):
    table: Table
    made: str  # command, date, versions
    on: str  # data, network, seeds


def accuracies(name, network, recipes, columns, notes, table=None):
    """Rows of a robustness experiment's table; None where it has no records yet.

    Args:
        name: Of its results files.
        network: Whose.
        recipes: Whose rows.
        columns: Of common/robustness.py.
        notes: The same.
        table: (results, network) -> table, where that is not it.
    """
    if not (PUBLISHED / f"{name}.csv").exists():
        return None
    results = read(PUBLISHED, name)
    rows = [row for row in results.rows if row["network"] == network and row["recipe"] in recipes]
    if not rows:
        return None
    some = Results([{k: v for k, v in row.items() if k != "operator norm linf"} for row in rows], results.meta)
    found = table(some, network) if table else robustness(some, network, columns, notes)
    images, seeds = results.meta["images"].split(" of ")[1], len({row["seed"] for row in rows})
    return Shown(found, made(results.meta), f"{images}, {network}, {_seeds(seeds)}")


def fine_tuned(network, recipes):
    """Rows of the fine-tuning experiment's table."""
    return accuracies("finetune", network, recipes, {}, {}, table=report.accuracies)


def _seeds(count):
    return "one seed" if count == 1 else f"{count} seeds"


def few_labels(families, counts, chosen_at):
    """Rows of the few-label experiment's table, and family -> its best member at a count."""
    content = json.loads((PUBLISHED / "labels.json").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        _lay_out(content["records"], Path(folder))
        words = content["made"]["command"].split()[3:]
        jobs = labels.all_jobs(labels.options_from([*words, "--out", folder]))
        jobs = [job for job in jobs if labels.ALL[job.way].family in families]
        best = {family: of_labels.best(jobs, family, chosen_at, 0.0) for family in families}
        table = of_labels.table(jobs, "accuracy", counts)
    seeds = {family: _seeds(len(found[1])) for family, found in best.items() if found}
    stamp = made(content["made"] | {"processor": "an MLP"})
    return Shown(table, stamp, f"MNIST, MLP, {seeds[families[-1]]}"), {
        f: found[0] for f, found in best.items() if found
    }


def one_line(subjects):
    """The experiment with nothing set but the method: plain training and the default, for some of its subjects."""
    records = json.loads((PUBLISHED / "transfer-tv.json").read_text(encoding="utf-8"))
    stamp = (PUBLISHED / "transfer-tv.md").read_text(encoding="utf-8").strip().rpartition("\n")[2]
    with tempfile.TemporaryDirectory() as folder:
        _lay_out(records, Path(folder))
        options = transfer.options_from(["--out", folder, "--subjects", *subjects])
        jobs = [Run(of, setting, seed) for of in subjects for setting in SETTINGS[:2] for seed in range(options.seeds)]
        title, heading, rows, _ = transfer.table(jobs, options)
    names = [f"{SUBJECTS[subject].label}, {setting}" for subject in subjects for setting in SETTINGS[:2]]
    kept = [heading.index(name) for name in ("clean", "attacked", "movement")]
    rows = [[name, *(row[i] for i in kept)] for name, row in zip(names, rows, strict=True)]
    notes = (
        "clean: accuracy in per cent, for a regression 100 R². PGD: 20 steps within ℓ∞ 8/255. movement: how far the "
        "output moves at most within that, found by PGD, in output units."
    )
    table = Table(title, ["training", "clean", "PGD ∞ 8", "movement"], rows, notes)
    command = "`python -m examples.experiments.transfer`"
    on = f"{SUBJECTS[subjects[0]].label}, {_seeds(options.seeds)}"
    return Shown(table, f"{stamp.removesuffix('.')}, by {command}.", on)


def _lay_out(records, folder):
    """As a run leaves them, one file each."""
    for name, record in records.items():
        (folder / f"{name}.json").write_text(json.dumps(record), encoding="utf-8")
