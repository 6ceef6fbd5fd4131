"""All that a machine with a GPU is asked first, in under ten minutes: tests, prices, memory, a profile, CIFAR-10.

    make gpu                                                     # or: python -m examples.experiments.gpu
    python -m examples.experiments.gpu --data FOLDER             # that holds CIFAR-10, which is downloaded otherwise
    python -m examples.experiments.gpu --parts cifar --patience 3
    python -m examples.experiments.gpu --rehearse                # every part on the CPU, with tiny sizes

A part that fails is named, and the others go on; the command then ends with code 1. What the parts found is in
`examples/experiments/results/gpu.json` and `gpu.md`, and the CIFAR-10 run's tables beside them. A rehearsal writes
nothing there. So far there has been no other than a rehearsal: no GPU was at hand.
"""

import argparse
import shutil
import sys
from pathlib import Path

import torch

from examples.experiments.common.files import read_json, write, write_json
from examples.experiments.common.results import PUBLISHED
from examples.experiments.cost.report import describe_run
from examples.experiments.gpu.page import page
from examples.experiments.gpu.parts import parts, run

TOLD = 25  # lines of a failed part's log


def options_from(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, with tiny sizes; publishes nothing")
    parser.add_argument("--parts", nargs="+", metavar="PART", help="default: all")
    parser.add_argument("--patience", type=float, help="factor on the time that each part may take: 1, rehearsing 10")
    parser.add_argument("--data", type=Path, help="folder of CIFAR-10 (default: TORCHLIPREG_DATA or out/data)")
    parser.add_argument("--out", type=Path, help="logs and files of the parts: out/gpu")
    parser.add_argument("--results", type=Path, help="the records (default: where the tables look for them)")
    options = parser.parse_args(arguments)
    options.out = (options.out or Path("out/gpu-rehearsal" if options.rehearse else "out/gpu")).resolve()
    options.patience = options.patience or (10.0 if options.rehearse else 1.0)
    default = options.out / "results" if options.rehearse else PUBLISHED
    options.results = (options.results or default).resolve()
    options.data = options.data and options.data.resolve()
    options.all = parts(options.out, options.results, options.data, options.rehearse)
    names = [part.name for part in options.all]
    if unknown := set(options.parts or ()) - set(names):
        parser.error(f"no part {', '.join(sorted(unknown))} among {', '.join(names)}")
    return options


def main(arguments=None):
    """Run the parts and return the names of those that failed."""
    options = options_from(arguments)
    if not (options.rehearse or torch.cuda.is_available()):
        raise SystemExit("torch sees no CUDA device here. `--rehearse` runs every part on the CPU.")
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.results / "gpu.json"
    known = read_json(path)["parts"] if options.parts and path.exists() else {}
    device = "cpu" if options.rehearse else "cuda"
    record = {"run": describe_run("python -m examples.experiments.gpu", device), "rehearsal": options.rehearse}
    record["parts"] = known
    failed = []
    for part in options.all:
        if options.parts and part.name not in options.parts:
            continue
        print(f"{part.name} …", flush=True)
        log = options.out / f"{part.name}.log"
        for left in (options.out / f"{part.name}.json", *([options.out / "cifar"] if part.name == "cifar" else [])):
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)
        entry = run(part, log, options.patience)
        record["parts"][part.name] = entry
        write_json(path, record)
        print(f"{part.name}: {'passed' if entry['passed'] else 'FAILED, ' + entry['why']}, {entry['seconds']} seconds")
        if not entry["passed"]:
            failed.append(part.name)
            print(*(f"    {line}" for line in log.read_text("utf-8", "replace").splitlines()[-TOLD:]), sep="\n")
            print(f"    all of it: {log}", flush=True)
    text = page(record)
    write(path.with_suffix(".md"), lambda part: part.write_text(text, encoding="utf-8"))
    print(text, f"Records: {path}", sep="\n")
    return failed


if __name__ == "__main__":
    if names := main():
        sys.exit(f"FAILED: {', '.join(names)}")
