"""Train on few labels with what people use against overfitting, and with the penalty.

    python -m examples.experiments.labels --data FOLDER --workers 2
    python -m examples.experiments.labels --of wine

A stopped experiment goes on where it was; `--quick` does the same on scikit-learn's digits, in seconds.
"""

import argparse
import os
from pathlib import Path

from examples.experiments.common.files import write, write_json
from examples.experiments.common.records import make_all, read
from examples.experiments.common.tables import markdown, print_tables
from examples.experiments.common.versions import command_line, made_by
from examples.experiments.labels.figures import draw
from examples.experiments.labels.runs import Run
from examples.experiments.labels.subjects import SUBJECTS
from examples.experiments.labels.tables import tables
from examples.experiments.labels.ways import ALL

MODULE = "examples.experiments.labels"


def options_from(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    data = os.environ.get("TORCHLIPREG_DATA", "out/data")
    parser.add_argument("--of", choices=SUBJECTS, default="mnist", help="what there are few labels of")
    parser.add_argument("--data", default=data, help="folder of the data (default: TORCHLIPREG_DATA or out/data)")
    parser.add_argument("--out", type=Path, default=Path("out/labels"), help="where records are kept")
    parser.add_argument("--results", type=Path, help="where the tables go (default: OUT/results)")
    parser.add_argument("--ways", nargs="+", choices=ALL, default=list(ALL))
    parser.add_argument("--labels", nargs="+", type=int, help="how many (default: several)")
    parser.add_argument("--wrong", nargs="+", type=float, default=[0.0], help="shares of wrong labels")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1, help="processes, of one thread each")
    parser.add_argument("--split", choices=["test", "validation"], default="test", help="what to judge by")
    parser.add_argument("--collect", action="store_true", help="train nothing, show what is there")
    parser.add_argument("--quick", action="store_true", help="few steps on small images, one seed")
    options = parser.parse_args(arguments)
    if options.quick:
        if options.of not in ("mnist", "mnist-conv"):
            parser.error("--quick takes small images in the place of MNIST's: leave out --of")
        options.seeds, options.labels = 1, [100, 200]
    options.labels = options.labels or list(SUBJECTS[options.of].counts)
    options.results = options.results or options.out / "results"
    return options


def all_jobs(options):
    """Seed by seed, so that a part of the experiment is of use."""
    where = options.data, options.split, options.quick, options.out
    return [
        Run(way, count, wrong, seed, *where, options.of)
        for seed in range(options.seeds)
        for wrong in options.wrong
        for count in options.labels
        for way in options.ways
    ]


def page(made, about, of="mnist"):
    """A page of one subject; the picture is there if there is more than one count to show."""
    name, subject = stem(of), SUBJECTS[of]
    versions = ", ".join(f"{library} {version}" for library, version in about["versions"].items())
    stamp = f"{about['data']}, {subject.network}. Made on {about['date']} by `{about['command']}` ({versions})."
    picture = [f"![accuracy gained]({name}.png)"] if len(made[0].heading) > 2 else []
    return (
        "\n\n".join([f"# Few labels: {about['data']}, {subject.network}", stamp, *map(markdown, made), *picture]) + "\n"
    )


def stem(of):
    return "labels" if of == "mnist" else f"labels-{of}"


def main(arguments=None):
    options = options_from(arguments)
    jobs, command, subject = all_jobs(options), command_line(MODULE, arguments), SUBJECTS[options.of]
    if not options.collect:
        make_all(jobs, options.workers, command)
    about = made_by(command) | {"data": subject.title(options.data)}
    made = tables(jobs, options.labels, options.wrong, subject.things)
    print_tables(made)
    records = {job.path.stem: record for job in jobs if (record := read(job))}
    name = options.results / stem(options.of)
    write_json(name.with_suffix(".json"), {"made": about, "records": records})
    draw(jobs, options.labels, f"{about['data']}, {subject.network}", subject.things, name.with_suffix(".png"))
    write(name.with_suffix(".md"), lambda part: part.write_text(page(made, about, options.of), encoding="utf-8"))
    return made


if __name__ == "__main__":
    main()
