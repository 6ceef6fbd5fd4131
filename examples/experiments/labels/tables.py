"""The table of few labels: each family by its member that is best on the validation labels."""

import statistics

from examples.experiments.common.records import read
from examples.experiments.common.tables import Table, per_cent, spread
from examples.experiments.labels.ways import ALL


def best(jobs, family, count, wrong):
    """Return (way, records) of the family's best member by mean validation accuracy; None where there is no record.

    Only members with as many seeds as the most have a say.
    """
    found = {}
    for job in jobs:
        if ALL[job.way].family == family and (job.labels, job.wrong) == (count, wrong) and (record := read(job)):
            found.setdefault(job.way, []).append(record["values"])
    seeds = max(map(len, found.values()), default=0)
    members = {way: records for way, records in found.items() if len(records) == seeds}
    if not members:
        return None
    chosen = max(members, key=lambda way: statistics.mean(r["accuracy of validation"] for r in members[way]))
    return chosen, members[chosen]


def table(jobs, number, counts, wrong=0.0, things="images"):
    """A row for each family, a column for each count that was run; `number` is "accuracy" or "nll"."""
    families = dict.fromkeys(ALL[job.way].family for job in jobs)
    found = {(family, count): best(jobs, family, count, wrong) for family in families for count in counts}
    counts = [count for count in counts if any(found[family, count] for family in families)]
    numbers = [len(member[1]) for member in found.values() if member]
    seeds = statistics.mode(numbers) if numbers else 0
    rows = []
    for family in families:
        cells = [_cell(*found[family, count], number, seeds) if found[family, count] else "–" for count in counts]
        if any(cell != "–" for cell in cells):
            rows.append([family, *cells])
    what = {"accuracy": "accuracy in per cent", "nll": "negative log-likelihood"}[number]
    spoilt = f", {100 * wrong:g} % of the labels wrong" if wrong else ""
    notes = "In brackets: the member of the family that is best on as many validation labels (at most 1,000)."
    if any(family.startswith("unlabelled") for family, *_ in rows):
        notes += f" unlabelled: the other training {things} are seen without their labels;"
        notes += " VAT: virtual adversarial training."
    spread_of = f"mean ± standard deviation of {seeds} seeds" if seeds > 1 else "one seed"
    if seeds > 1:
        notes += " A number without ± is of one seed."
    title = f"few labels: {what} on the test {things}{spoilt}, {spread_of}"
    return Table(title, ["training", *(f"{count:,} labels" for count in counts)], rows, notes)


def _cell(way, records, number, seeds):
    values = [record[number] for record in records]
    numbers = per_cent(values) if number == "accuracy" else spread(values, 2)
    numbers += f" of {len(records)} seeds" if 1 < len(records) != seeds else ""
    member = way.rpartition("-")[2]
    return f"{numbers} ({member})" if any(c.isdigit() for c in member) else numbers


def tables(jobs, counts, shares, things="images"):
    made = [table(jobs, number, counts, wrong, things) for wrong in shares for number in ("accuracy", "nll")]
    return [of for of in made if of.rows]
