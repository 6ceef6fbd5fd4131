"""One page of what the parts found, made from the record alone."""

from examples.experiments.common.tables import grid

STEPS = ("float32", "bfloat16", "compiled")


def page(record):
    run = record["run"]
    made = f"Made on {run['date']} by `{run['command']}` ({run['processor']}; "
    made += f"torch {run['torch']}, timm {run['timm']}, torchlipreg {run['torchlipreg']}, python {run['python']})."
    title = "# Rehearsal on a CPU: no numbers to be quoted" if record["rehearsal"] else "# On a GPU"
    found = {name: entry["result"] for name, entry in record["parts"].items() if entry["result"]}
    parts = [title, made, _parts(record["parts"])]
    steps = {name: result for name, result in found.items() if name.startswith(STEPS)}
    if steps:
        parts.append(_steps(steps))
    if "profile" in found:
        parts.append(_profile(found["profile"]))
    if "cifar" in found:
        parts.append(f"CIFAR-10: `{found['cifar']}` and the files beside it.")
    return "\n\n".join(parts) + "\n"


def _table(heading, rows):
    return grid(heading, ["---"] * len(heading), rows)


def _parts(entries):
    rows = [[name, "passed" if e["passed"] else f"FAILED: {e['why']}", e["seconds"]] for name, e in entries.items()]
    return _table(["part", "outcome", "seconds"], rows)


def _steps(steps):
    rows = [
        [
            part.partition("-")[0],
            f"{model}, {of['image size']} px, batches of {of['batch size']}",
            row["contender"],
            f"{row['milliseconds']:.1f}",
            f"{row['time']:.2f} ({row['counted']:.2f})",
            f"{row['memory']:.2f}",
        ]
        for part, result in steps.items()
        for model, of in result["models"].items()
        for row in of["rows"]
    ]
    heading = ["precision", "model", "training", "ms", "time, relative to plain (counted)", "memory, relative"]
    notes = "A step without an optimiser; compiled: with bfloat16. float32 is what torch makes of it by default."
    return f"{_table(heading, rows)}\n\n{notes}"


def _profile(profile):
    rows = [
        [model, name, of["milliseconds"], of["gibibytes"], f"{of['waits']:g}", "; ".join(list(of["longest"])[:3])]
        for model, contenders in profile["models"].items()
        for name, of in contenders.items()
    ]
    heading = ["model", "training", "ms", "GiB", "waits a step", "takes longest"]
    size = f"{profile['image size']} px, batches of {profile['batch size']}"
    notes = f"With AdamW and bfloat16 autocast, {size}. A wait: the host stops for a result of the device."
    return f"{_table(heading, rows)}\n\n{notes}"
