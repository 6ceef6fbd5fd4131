"""The table of an experiment: accuracy under each attack, the Jacobian's norm, time."""

from examples.experiments.common.tables import Table, per_cent, spread, step_time


def robustness(results, network, columns, notes):
    """A row for each recipe.

    Args:
        results: Of results.py.
        network: Whose.
        columns: Heading -> name in the results; those that nobody measured are left out.
        notes: What a heading starts with -> what is to be known of it.
    """
    recipes = results.recipes(network)
    seeds = len({row["seed"] for row in results.rows if row["network"] == network})
    columns = {head: name for head, name in columns.items() if _is_shown(results, network, name)}
    rows = [
        [
            results.label(network, recipe),
            *(_cell(results.numbers(network, recipe, name), seeds) for name in columns.values()),
            spread(results.numbers(network, recipe, "operator norm linf"), 1),
            step_time(results, network, recipe),
        ]
        for recipe in recipes
    ]
    heading = ["training", *columns, "‖J‖", "time"]
    kept = [i for i in range(len(heading)) if any(row[i] != "–" for row in rows)]
    heading, *rows = [[row[i] for i in kept] for row in (heading, *rows)]
    spread_of = f"mean ± standard deviation of {seeds} seeds" if seeds > 1 else "one seed"
    words = results.meta["images"].split(" of ")
    title = f"{network}: accuracy on the {words[0]} of {words[1]} in per cent, {spread_of}"
    told = [text for start, text in notes.items() if any(head.startswith(start) for head in heading)]
    if seeds > 1:
        told.append("A number without ± is of one seed.")
    if any("(" in cell for row in rows for cell in row[1:]):
        told.append(f"In brackets after a number: of fewer than {seeds} seeds.")
    return Table(title, heading, rows, " ".join(told))


def _cell(values, seeds):
    return per_cent(values) + (f" ({len(values)})" if 1 < len(values) < seeds else "")


def _is_shown(results, network, name):
    """Only what was measured; the gradient attacks alone give way to AutoAttack where that has judged every model."""
    rows = [row for row in results.rows if row["network"] == network]
    judged = name.startswith("apgd") and all(name.replace("apgd", "autoattack") in row for row in rows)
    return any(name in row for row in rows) and not judged
