"""What there is to say for each purpose: the line, its measurements, and what was not measured."""

from dataclasses import dataclass

from examples.experiments.cifar import tables as of_cifar
from examples.experiments.cifar.recipes import ALL as CIFAR
from examples.experiments.finetune.recipes import RECIPES as FINETUNE
from examples.experiments.labels.ways import ALL as WAYS
from examples.experiments.mnist import tables as of_mnist
from examples.experiments.mnist.recipes import RECIPES as MNIST
from examples.experiments.purposes.lines import imports, line
from examples.experiments.purposes.records import Shown, accuracies, few_labels, fine_tuned, one_line

DEFAULT = {"method": "tv", "radius": 8 / 255, "weight": 0.05}  # the line with nothing set


@dataclass(frozen=True)
class Line:
    """A line to copy, and what was measured of it.

    Attributes:
        what: In words.
        penalty: The recipe's arguments of LipschitzPenalty.
        shown: Tables and what made them; None where there are no records yet.
        compared: In the first table: (row before, row of the line, column of clean accuracy, column that gains).
        notes: What the numbers do not say.
        more: Code after the line.
    """

    what: str
    penalty: dict
    shown: list[Shown | None]
    compared: tuple[str, str, str, str | None]
    notes: str = ""
    more: str = ""

    @property
    def code(self):
        body = "\n".join(part for part in (line(self.penalty), self.more) if part)
        return "\n".join([*imports(body), "", body])

    def summary(self):
        """Return (price, clean accuracy, what gains, on what), "–" for what was not measured."""
        if self.shown[0] is None:
            return ("–", "–", "–", "not measured yet")
        table = self.shown[0].table
        before, after = (
            {row[0]: dict(zip(table.heading, row, strict=True)) for row in table.rows}[label]
            for label in self.compared[:2]
        )
        clean, gains = ("–" if name is None else f"{before[name]} → {after[name]}" for name in self.compared[2:])
        gained = gains if self.compared[3] is None else f"{self.compared[3]}: {gains}"
        return after.get("price", after.get("time", "not measured")), clean, gained, self.shown[0].on


def columns(of, *names):
    return {name: of[name] for name in names}


def mnist(network, recipes, *names):
    return accuracies("mnist_robustness", network, recipes, columns(of_mnist.COLUMNS, *names), of_mnist.NOTES)


def linf():
    notes = of_cifar.NOTES | {"APGD": f"{of_cifar.NOTES['APGD']} On the first 300 images."}
    shown = columns(of_cifar.COLUMNS, "clean", "APGD ∞ 8", "AutoAttack ∞ 8", "noise .2")
    rows = ("plain", "fgsm", "n-fgsm", "pgd", "tv-fourth", "tv-quarter-10", "tv-quarter", "tv-quarter-40")
    natural = accuracies("cifar_robustness", "conv", rows, shown, notes)
    judge = "APGD ∞ 8" if natural is None or "APGD ∞ 8" in natural.table.heading else "AutoAttack ∞ 8"
    rows = ("plain", "fgsm", "pgd", "trades", "tv", "tv-eighth")
    attacks = ("clean", "APGD ∞ .1", "AutoAttack ∞ .1", "noise .8")
    subjects = one_line(["cifar-conv", "cifar-bn", "cifar-vit", "mnist-conv", "digits-mlp"])
    conv, tv = "CIFAR-10 raw, conv net", MNIST["mlp"]["tv"]
    falls = f"gamma = {tv.weight_fall:g} ** (1 / (epochs * len(loader)))  # after each step: penalty.weight *= gamma"
    return [
        Line(
            "nothing set, little clean accuracy to lose",
            DEFAULT,
            [subjects],
            (f"{conv}, plain", f"{conv}, default", "clean", "PGD ∞ 8"),
            "The price was not measured here. On other networks the whole batch took 2.7 to 4.9 plain steps "
            "([cost](results/cost.md)).",
        ),
        Line(
            "the cheapest: a quarter of a batch of 128, every fourth step",
            CIFAR["tv-fourth"].penalty,
            [natural],
            ("plain", CIFAR["tv-fourth"].label, "clean", judge),
            "The dearer rows leave `interval` out.",
        ),
        Line(
            "small networks, no clean accuracy to lose: 72 points of 128, a weight that falls",
            tv.penalty,
            [mnist("mlp", rows, *attacks), mnist("conv", rows, *attacks)],
            ("plain", tv.label, "clean", "AutoAttack ∞ .1"),
            "The conv net's row has radius 0.2, weight 20, 96 points, and falls to 0.025 of it.",
            falls,
        ),
    ]


def l2():
    logits = MNIST["mlp"]["logits"]
    attacks = ("clean", "PGD 2 1.0", "PGD 2 2.0", "AutoAttack 2 1.0", "noise .8")
    rows = ("plain", "pgd", "trades", "tv", "tv-strong", "logits", "logits-strong")
    norms = ("weight 0.001", "weight 0.05, input_norm 2, radius 1.0")
    tuned = columns(of_mnist.COLUMNS, "clean", "PGD ∞ .1", "PGD 2 1.0", "PGD 2 2.0", "noise .8")
    return [
        Line(
            "logits, in ℓ∞",
            logits.penalty,
            [mnist("mlp", rows, *attacks), accuracies("mnist_settings", "mlp", norms, tuned, of_mnist.NOTES)],
            ("plain", logits.label, "clean", "noise .8"),
            "The second table has the penalty in ℓ∞ (the first row) and in ℓ2, with weights of bare quotients. "
            "`input_norm=2` was not measured on test images, nor under AutoAttack. On natural images ℓ2 attacks were "
            "not measured; noise is a column of their tables on this page.",
        )
    ]


def labels():
    families = ["plain", "weight decay", "dropout", "Gaussian noise", "tv ℓ∞, ε .1", "tv ℓ2, ε 1"]
    families += ["label smoothing", "Jacobian penalty"]
    made, best = few_labels(families, [100, 300, 1_000, 3_000, 10_000], 1_000)
    return [
        Line(
            "images in [0, 1], in ℓ2",
            WAYS[best["tv ℓ2, ε 1"]].penalty,
            [made],
            ("plain", "tv ℓ2, ε 1", "1,000 labels", None),
            "The line is the family's member for 1,000 labels. Where labels are wrong, ℓ∞ with radius .1 and a weight "
            "of 1 (20 %) or 3 (40 %) is the best of the families ([few labels](results/labels.md)); from 10,000 labels "
            "on label smoothing is better. With 4,000 labels of CIFAR-10 no way of ours gained accuracy. The price was "
            "not measured.",
        )
    ]


def unlabelled():
    way = WAYS["tv-unlabelled-balanced-long"]
    others = ("vat", "vat-balanced", "vat-balanced-long", "tv-unlabelled", "tv-unlabelled-balanced")
    made, _ = few_labels(["plain", *(WAYS[name].family for name in others), way.family], [100, 1_000], 100)
    more = [
        f"warmup = WeightWarmup(penalty, steps={way.warmup})",
        "for (x, y), more in zip(loader, unlabelled_loader):",
        "    outputs = model(more)",
        "    mean = outputs.softmax(1).mean(0).clamp_min(1e-12)",
        f"    imbalance = {way.balanced} * (mean * mean.log()).sum()  # where all classes are equally frequent",
        "    loss = criterion(model(x), y) + penalty(model, more, outputs) + imbalance",
        "    optimizer.zero_grad()",
        "    loss.backward()",
        "    optimizer.step()",
        "    warmup.step()",
    ]
    return [
        Line(
            f"64 labelled and 128 unlabelled images in each of {way.steps:,} steps",
            way.penalty,
            [made],
            ("plain", way.family, "100 labels", None),
            "VAT is virtual adversarial training; the shorter trainings take 1,500 steps, and a weight of 1 with a "
            "balance of 0.4. Without the balance a training may give the images of one class to "
            "another: of 100 labels, four seeds gained 9 to 17 points and one 3. The price was not measured. In "
            "the measured runs both terms grew from nothing, by hand; `WeightWarmup` begins at a tenth.",
            "\n".join(more),
        )
    ]


def regression():
    return [
        Line(
            "no gain found",
            DEFAULT,
            [one_line(["diabetes-mlp"])],
            ("diabetes, regression, plain", "diabetes, regression, default", "clean", "movement"),
            "No gain was found on this table of numbers (clean: 100 R²), whose columns are standardised: there "
            "`radius` counts in standard deviations, `radius=0.3` say. In one dimension "
            "`python -m examples.experiments.polynomial` draws fits with gaps. The price was not measured.",
        )
    ]


def finetuning():
    recipe = FINETUNE["tv"]
    made = [fine_tuned(network, list(FINETUNE)) for network in ("conv", "conv-bn")]
    heads = [head for shown in made if shown is not None for head in shown.table.heading]
    judge = next((head for head in ("AutoAttack ∞ 8", "APGD ∞ 8") if head in heads), "")
    more = [
        "steps = epochs * len(loader)",
        f"optimizer = torch.optim.Adam(model.parameters(), lr={recipe.peak:g})",
        f"schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, {recipe.peak:g}, total_steps=steps)",
        "warmup = WeightWarmup(penalty, steps)  # after each step: schedule.step() and warmup.step()",
    ]
    compared = ("as it was", recipe.label, "clean", judge)
    notes = (
        "With BatchNorm it cost twice as much clean accuracy as FGSM on a half, for little more robustness: to "
        "fine-tune such a network, take that instead. Without a warm-up of its weight a penalty of this strength ruins "
        "a network that was trained plainly; "
        "[fine-tuning](results/finetune.md) has what else was tried."
    )
    return [Line("for a tenth of its training", recipe.penalty, made, compared, notes, "\n".join(more))]


SECTIONS = {
    "Withstand attacks bounded in ℓ∞": linf,
    "Withstand ℓ2 attacks or noise": l2,
    "Few labels": labels,
    "Unlabelled data": unlabelled,
    "Fine-tune a network that exists": finetuning,
    "Smooth regression": regression,
}
