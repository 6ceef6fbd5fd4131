"""The parts of a run on a GPU, and of its rehearsal on a CPU: commands, how long they may take, where results lie."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from examples.experiments.common.files import read_json

ROOT = Path(__file__).parents[3]
MODELS = ("resnet50", "vit_small")
EAGER = ("plain", "tv", "tv, 1/8 of batch", "FGSM training", "PGD-10 training")
TABLES = "cifar-gpu-short_robustness.json"
COMPILED = ("plain", "tv")  # each further one costs compilations, of half a minute each


@dataclass(frozen=True)
class Part:
    """One process.

    Attributes:
        name: Of the part, its log and its result.
        command: After ``python``.
        limit: Seconds after which it is ended.
        result: From the text that it printed to what goes into the record.
        environment: Variables besides those that are there.
    """

    name: str
    command: tuple
    limit: float
    result: Callable[[str], object]
    environment: dict = field(default_factory=dict)


def parts(folder, results, data, rehearse):
    """Return the parts: their files go to `folder`, the published records of CIFAR-10 to `results`."""
    device = "cpu" if rehearse else "cuda"

    def step(name, models, contenders, limit, *options):
        out = folder / f"{name}.json"
        words = ("-m", "examples.experiments.cost", "--device", device, "--models", *models, "--out", str(out))
        words += ("--contenders", *contenders, "--seconds", "8", "--repeats", "20", *options)
        # What was compiled stays, for a second run after one that ran out of time.
        cache = {"TORCHINDUCTOR_CACHE_DIR": str(folder / "compiled")}
        return Part(name, words + (("--quick",) if rehearse else ()), limit, lambda _: read_json(out), cache)

    # The Trainer and Accelerate take a GPU wherever there is one; pytest's own cache would lie in the repository.
    tests = ("-m", "pytest", "-m", "gpu", "-n", "2" if rehearse else "4", "-p", "no:cacheprovider", "-q", "tests")
    profile = folder / "profile.json"
    cifar = (
        *("-m", "examples.experiments.cifar", "--scale", "gpu-short", "--device", device, "--networks", "conv"),
        *("--recipes", "plain,fgsm,tv-quarter", "--measures", "curves,apgd", "--seeds", "1"),
        *("--out", str(folder / "cifar"), "--results", str(results)),
    )
    if data is not None:
        cifar += ("--data", str(data))
    rehearsal = ("--rehearse",) if rehearse else ()
    # The small ones of the same families; a compiler for the CPU takes minutes for one of these.
    models, compiled = (("resnet18", "vit_tiny"), ("two-layer", "mlp")) if rehearse else (MODELS, MODELS)
    return [
        Part("tests", tests, 130, counts, {"TORCHLIPREG_REHEARSAL": "1" if rehearse else "0"}),
        Part(
            "profile",
            ("-m", "examples.experiments.gpu.profile", "--out", str(profile), *rehearsal),
            60,
            lambda _: read_json(profile),
        ),
        step("float32", models, EAGER[:2] if rehearse else EAGER, 60),
        step("bfloat16", compiled, EAGER, 50, "--autocast"),
        step(f"compiled-{compiled[0]}", compiled[:1], COMPILED, 120, "--autocast", "--compile"),
        step(f"compiled-{compiled[1]}", compiled[1:], COMPILED, 80, "--autocast", "--compile"),
        Part("cifar", (*cifar, *(("--quick",) if rehearse else ())), 90, lambda _: existing(results / TABLES)),
    ]


def existing(path):
    """Return the name of a file that must be there."""
    if not path.exists():
        raise FileNotFoundError(path.name)
    return path.name


def counts(text):
    """What pytest says at its end, by outcome.

    Raises:
        ValueError: If no test ran.
    """
    found = {outcome: int(number) for number, outcome in re.findall(r"(\d+) (passed|failed|skipped|error)", text)}
    if not found.get("passed"):
        raise ValueError(f"no test passed: {found}")
    return found


def run(part, log, patience=1.0):
    """Run a part, its output going to a file, and return its entry of the record."""
    start, why, result = time.perf_counter(), None, None
    with log.open("w", encoding="utf-8") as file:
        # A session of its own, so that its own processes end with it.
        process = subprocess.Popen(
            [sys.executable, *part.command],
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "MPLBACKEND": "agg", **part.environment},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(part.limit * patience)
            why = None if code == 0 else f"ended with code {code}"
        except subprocess.TimeoutExpired:
            why = f"not done after {part.limit * patience:.0f} seconds"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    try:
        result = part.result(log.read_text(encoding="utf-8", errors="replace"))
    except (OSError, ValueError) as error:
        why = why or f"left no result ({type(error).__name__})"  # whose text has paths of this machine
    return {"passed": why is None, "why": why, "seconds": round(time.perf_counter() - start, 1), "result": result}
