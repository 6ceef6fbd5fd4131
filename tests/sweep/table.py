"""The table for the documentation."""

import re
from collections import Counter

OUTCOMES = ("right", "refused", "skipped", "WRONG")
WHAT = """# Models that others wrote

`make sweep`: each model is made with random weights, in float64, with the smallest inputs that it takes. Method tv at
radius .1 in ℓ2. *Right* means:

- in eval mode value and gradient, and in train mode the value, equal a plain reference at the same pairs to 1e-7
  (gradient 1e-6), which evaluates a copy of the model in eval mode for each point;
- in the limit ε → 0 value and gradient equal the reference at a distance of 1e-6 (to 1e-4, gradient 1e-3), or,
  "coarsely", in models that compute in float32 inside, at 1e-4 (to 1e-3, gradient 1e-2) or 1e-2 (to 1e-2, gradient a
  tenth);
- after each call flags, buffers, parameters, gradients, attributes and random numbers are as before;
- of every tenth model the compiled form is right as well (`torch.compile`, backend aot_eager), and of every fifth with
  BatchNorm and less than 3 million parameters the gradient in train mode equals central differences, the statistics
  measured anew.

*Refused* is an error that says why, in its own words, cut off: in torch's test database these are samples without a
batch and losses, which return one number; the same layers are right on batches. *Skipped* was not looked at: too
large or too slow, or, as it is initialised, so flat that float64 rounds a difference by more than a hundred-millionth.
"""


def cell(text):
    return str(text).replace("|", "\\|").replace("\n", " ")


def table(head, rows):
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join(lines + [f"| {' | '.join(map(cell, row))} |" for row in rows])


def markdown(results, date, versions):
    """The page, from all results."""
    results = list(results)
    groups = dict.fromkeys(row["group"] for row in results)
    rows = []
    for group in groups:
        own = [row for row in results if row["group"] == group]
        counts = Counter(row["outcome"] for row in own)
        checks = Counter(check for row in own if row["outcome"] == "right" for check in row["checks"])
        rows.append(
            [
                group,
                len(own),
                *(counts[o] for o in OUTCOMES),
                *(checks[c] for c in ("limit", "limit, coarsely", "compiled", "differences")),
            ]
        )
    made = ", ".join(f"{library} {version}" for library, version in versions.items())
    parts = [
        WHAT,
        table(["group", "samples", *OUTCOMES, "limit too", "coarsely", "compiled too", "differences too"], rows),
    ]
    for outcome, title in (("WRONG", "Wrong"), ("refused", "Refused"), ("skipped", "Skipped")):
        own = [row for row in results if row["outcome"] == outcome]
        if own:
            parts += [f"\n## {title}\n", by_reason(own)]
    no_limit = [row for row in results if row.get("limit") == "refused"]
    if no_limit:
        names = ", ".join(f"{row['name']}" for row in no_limit)
        parts += ["\n## Right, but refused in the limit ε → 0\n", f"A layer has no forward-mode derivative: {names}."]
    parts += [f"\nMade on {date} by `make sweep` ({made})."]
    return "\n".join(parts) + "\n"


def by_reason(rows):
    reasons = {}
    for row in rows:
        # Shapes and counts are the samples' own
        reason = re.sub(r"\((?:\d+, ?)*\d*\)", "(…)", re.sub(r"of \d+ rows", "of N rows", row["detail"]))
        reasons.setdefault((row["group"], reason), []).append(row["name"])
    return table(["group", "models", "reason"], [[g, counted(names), detail] for (g, detail), names in reasons.items()])


def counted(names):
    """Names of samples; of torch's, which end with a number, how many of each module."""
    counts = Counter(re.sub(r" \d+$", "", name) for name in names)
    return ", ".join(name if count == 1 else f"{name} ({count})" for name, count in counts.items())
