"""`python -m sweep`, in tests/: judge all samples that have not been judged, and write the table."""

import argparse
import datetime
import importlib.metadata
import json
import platform
from pathlib import Path

from sweep.isolated import Judge
from sweep.table import markdown

ROOT = Path(__file__).parents[2]
GROUPS = ("torch", "timm", "torchvision", "transformers, images", "transformers, audio", "transformers, text")
TENTH = 10  # of which one is compiled, and one has its gradient in train mode compared with differences
LIBRARIES = ("torch", "torchvision", "timm", "transformers")


def versions():
    found = {"torchlipreg": importlib.metadata.version("torchlipreg"), "python": platform.python_version()}
    return found | {library: importlib.metadata.version(library) for library in LIBRARIES}


def read(path):
    if not path.exists():
        return {}
    rows = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    return {(row["group"], row["name"]): row for row in rows}


def main():
    parser = argparse.ArgumentParser(prog="python -m sweep", description=__doc__)
    parser.add_argument("--groups", nargs="*", default=GROUPS, choices=GROUPS, metavar="GROUP", help=", ".join(GROUPS))
    parser.add_argument(
        "--results",
        type=Path,
        default=Path(__file__).with_name("results.jsonl"),
        help="what is in it is not done again",
    )
    parser.add_argument("--table", type=Path, default=ROOT / "docs" / "models.md")
    parser.add_argument("--limit", type=float, default=120, help="processor seconds for a sample")
    parser.add_argument("--only", default="", help="part of the samples' names")
    parser.add_argument("--again", action="store_true", help="judge samples anew that were WRONG or skipped")
    arguments = parser.parse_args()
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    results, judge = read(arguments.results), Judge(arguments.limit)
    for group in arguments.groups:
        names = judge.ask(group)
        if isinstance(names, dict):  # the group cannot be listed: why
            results[group, "all"], names = {"group": group, "name": "all", **names}, []
        for i, name in enumerate(names):
            known = results.get((group, name))
            again = arguments.again and known is not None and known["outcome"] in ("WRONG", "skipped")
            if arguments.only not in name or (known is not None and not again):
                continue
            options = {"compiled": i % TENTH == 3, "differences": i % TENTH in (0, 5)}
            row = {"group": group, "name": name, **judge.ask(group, name, **options)}
            results[group, name] = row
            with arguments.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(group, name, row["outcome"], row["detail"], flush=True)
    judge.close()
    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    arguments.table.write_text(markdown(results.values(), today, versions()), encoding="utf-8")
    wrong = [row for row in results.values() if row["outcome"] == "WRONG"]
    print(f"{len(results)} samples, {len(wrong)} wrong; {arguments.table}")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
