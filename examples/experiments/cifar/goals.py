"""What was to be shown, and whether the records show it: reached, or by how much not."""

from dataclasses import dataclass

from examples.experiments.cifar.judge import judge, points
from examples.experiments.common.tables import Table

OURS = (
    *("tv-quarter", "tv-quarter-10", "tv-quarter-5", "tv-eighth", "tv-eighth-20", "tv-alternate", "tv-tenth"),
    *("logits-quarter", "tv-whole"),
)


@dataclass(frozen=True)
class Goal:
    """Some recipe of ours, no dearer than `price`, is to be as good as a rival.

    Attributes:
        text: For the table.
        price: In plain steps.
        rival: Its recipe.
        share: Of the rival's gain in robustness over plain training that ours is to reach.
        clean: Whether clean accuracy is to be no less than the rival's, too.
    """

    text: str
    price: float
    rival: str
    share: float = 1.0
    clean: bool = True

    def lacking(self, mine, theirs, plain):
        """Points of accuracy that are missing, 0 where none is."""
        wanted = plain.robust + self.share * (theirs.robust - plain.robust)
        return max(0.0, wanted - mine.robust, theirs.clean - mine.clean if self.clean else 0.0)


GOALS = (
    Goal("at ≤ 1.5 ×: FGSM's robustness and clean accuracy", 1.5, "fgsm"),
    Goal("at ≤ 1.5 ×: N-FGSM's robustness and clean accuracy", 1.5, "n-fgsm"),
    Goal("at ≤ 1.15 ×: nine tenths of FGSM's gain, more clean accuracy", 1.15, "fgsm", share=0.9),
    Goal("at ≤ 1.15 ×: in front of FGSM on a quarter", 1.15, "fgsm-quarter", clean=False),
    Goal("at ≤ 3 ×: PGD-7's robustness and clean accuracy", 3.0, "pgd"),
    Goal("at ≤ 3 ×: TRADES' robustness and clean accuracy", 3.0, "trades"),
)


def goals(results, network):
    """A row for each goal whose rival was measured: the recipe of ours that comes closest at the price."""
    found = points(results, network)
    rows = []
    for goal in GOALS:
        theirs, plain = found.get(goal.rival), found.get("plain")
        ours = [name for name in OURS if name in found and found[name].price <= goal.price]
        if theirs is None or plain is None:
            continue
        if not ours:
            rows.append([goal.text, _numbers(theirs), "none at the price", "–", "–"])
            continue
        best = min(ours, key=lambda name: (goal.lacking(found[name], theirs, plain), -found[name].clean))
        lacking = goal.lacking(found[best], theirs, plain)
        verdict = "reached" if lacking == 0 else f"{lacking:.1f} points short"
        rows.append([goal.text, _numbers(theirs), results.label(network, best), _numbers(found[best]), verdict])
    judged = judge(results, network)
    heading = ["goal", "rival", "ours", "its numbers", "verdict"]
    notes = (
        f"Numbers: clean / {judged[1] if judged else ''} at ∞ 8 in per cent, and price. The best of ours at the price."
    )
    return Table(f"{network}: what was to be shown", heading, rows, notes)


def _numbers(point):
    return f"{point.clean:.1f} / {point.robust:.1f}, {point.price:.2f} ×"
