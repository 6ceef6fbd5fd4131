"""Build the sdist and the wheel, check them, and try the wheel where nothing else is.

    python .ci/dist.py                                         # this Python, the newest releases
    python .ci/dist.py --python python3.10 --oldest            # the oldest releases that pyproject.toml admits
    python .ci/dist.py --python python3.13 --extras --no-build  # the core alone, of what lies in dist/ already

First an environment gets the wheel and torch, nothing else. Then each extra gets one of its own, which sees the first
as if it were its own and adds the extra: torch, a matter of gigabytes, is installed once. Each runs `.ci/smoke.py`.
All environments lie in a temporary folder and are deleted.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"
EXTRAS = ("accelerate", "timm", "lightning", "transformers", "progress")
INSTEAD = {"pytorch-lightning": "pytorch-lightning>=2.5"}  # serves as well as `lightning`


def run(*command, **options):
    print("$", *(str(word).replace(f"{ROOT}/", "") for word in command), flush=True)
    return subprocess.run([str(word) for word in command], check=True, **options)


def build():
    """Build from the tracked files alone, so that nothing else that lies about goes into the sdist."""
    shutil.rmtree(DIST, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "torchlipreg")
        if (ROOT / ".git").exists():
            listed = run("git", "-C", ROOT, "ls-files", "-z", stdout=subprocess.PIPE, text=True).stdout
            for name in filter(None, listed.split("\0")):
                if (ROOT / name).exists():
                    (source / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(ROOT / name, source / name)
        else:  # an unpacked sdist
            shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".venv", "build", "dist", "out", "*.egg-info"))
        run(sys.executable, "-m", "build", "--outdir", DIST, source)
    run(sys.executable, "-m", "twine", "check", "--strict", *DIST.iterdir())


def oldest(wheel, extra):
    """Return constraints that pin each requirement of the wheel with an extra to its lower bound."""
    with zipfile.ZipFile(wheel) as files:
        (name,) = (n for n in files.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = files.read(name).decode().replace('"', "'")
    bounds = re.findall(r"^Requires-Dist: ([\w.-]+>=[\w.]+)(?:; extra == '(.*)')?$", metadata, re.MULTILINE)
    found = [bound for bound, of in bounds if of in ("", extra)] + ([INSTEAD[extra]] if extra in INSTEAD else [])
    return [bound.replace(">=", "==") for bound in found]


def environment(folder, python, requirements, constraints, below=None):
    """Make an environment; it sees what is installed in the one `below` it."""
    run(python, "-m", "venv", folder)
    inside = folder / "bin" / "python"
    if below is not None:
        (packages,) = folder.glob("lib/python3*/site-packages")
        (lower,) = below.glob("lib/python3*/site-packages")
        (packages / "below.pth").write_text(f"{lower}\n")
    told = folder / "constraints.txt"
    told.write_text("".join(f"{line}\n" for line in constraints))
    print("constraints:", *constraints)
    run(inside, "-m", "pip", "install", "--quiet", *requirements, "-c", told)
    return inside


def smoke(inside, name, folder, wheel):
    """Run outside of the repository, and with -I, so that nothing of it lends what the wheel lacks."""
    run(inside, "-I", ROOT / ".ci" / "smoke.py", name, wheel.name.split("-")[1], cwd=folder)


def try_wheel(python, wheel, extras, old):
    """Return the names of what failed."""
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        core = folder / "core"
        smoke(environment(core, python, [wheel], oldest(wheel, "") if old else []), "core", folder, wheel)
        for name in extras:
            requirements = [wheel, INSTEAD[name]] if name in INSTEAD else [f"{wheel}[{name}]"]
            constraints = oldest(wheel, name) if old else []
            try:
                smoke(environment(folder / name, python, requirements, constraints, core), name, folder, wheel)
            except subprocess.CalledProcessError as error:
                print(f"FAILED: {name}: {error}", flush=True)
                failed.append(name)
            shutil.rmtree(folder / name)
    return failed


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", default=sys.executable, help="of the environments (default: this one)")
    parser.add_argument("--extras", nargs="*", choices=[*EXTRAS, *INSTEAD], default=[*EXTRAS, *INSTEAD])
    parser.add_argument("--oldest", action="store_true", help="install the lower bounds of pyproject.toml")
    parser.add_argument("--no-build", action="store_true", help="try the wheel that lies in dist/")
    parser.add_argument("--no-try", action="store_true", help="only build and check")
    options = parser.parse_args()
    if not options.no_build:
        build()
    if options.no_try:
        return
    (wheel,) = DIST.glob("*.whl")
    failed = try_wheel(options.python, wheel, options.extras, options.oldest)
    if failed:
        raise SystemExit(f"The wheel does not work with {', '.join(failed)}.")
    print("The wheel works:", "core", *options.extras)


if __name__ == "__main__":
    main()
