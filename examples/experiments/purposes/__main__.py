"""Write the page "Settings by purpose" from the records of the other experiments.

    python -m examples.experiments.purposes

Nothing is trained or measured. A test compares the page with the records.
"""

import argparse
from pathlib import Path

from examples.experiments.common.files import write
from examples.experiments.common.tables import grid, markdown
from examples.experiments.purposes.sections import SECTIONS

PAGE = Path(__file__).parents[3] / "docs" / "purposes.md"
INTRODUCTION = """# Settings by purpose

For each purpose a line to copy, what it costs, and on what that was measured. The line stands before the loop; in the
loop there is one term more:

```python
out = model(x)
loss = criterion(out, y) + penalty(model, x, out)
```

Radii are those of images in [0, 1]; where the loop normalises, `normalization=(mean, std)` keeps them so.
[Settings](settings.md) says what the default does to other data."""
COLUMNS = ("purpose", "the line", "price", "clean accuracy", "what gains", "measured on")


def page():
    sections = {title: make() for title, make in SECTIONS.items()}
    return "\n\n".join([INTRODUCTION, *_summary(sections), *_details(sections), _end()]) + "\n"


def _summary(sections):
    rows = [[title, line.what, *line.summary()] for title, lines in sections.items() for line in lines]
    ruler = ["---"] * 2 + ["--:"] * 3 + ["---"]
    notes = (
        "From plain training to training with the line, in per cent; for fine-tuning, from the network as it was. "
        "price: time of a step, in plain steps; for fine-tuning, its share of the plain training's time."
    )
    return [grid(COLUMNS, ruler, rows), notes]


def _details(sections):
    for title, lines in sections.items():
        yield f"## {title}"
        for line in lines:
            yield f"### {line.what[0].upper()}{line.what[1:]}"
            yield f"```python\n{line.code}\n```"
            for shown in line.shown:
                if shown is not None:
                    yield markdown(shown.table)
                    yield shown.made
            if line.notes:
                yield line.notes


def _end():
    return "Made by `python -m examples.experiments.purposes` from the records of the experiments named."


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--page", type=Path, default=PAGE, help="what to write (default: docs/purposes.md)")
    path, text = parser.parse_args(arguments).page, page()
    write(path, lambda part: part.write_text(text, encoding="utf-8"))
    print(path)


if __name__ == "__main__":
    main()
