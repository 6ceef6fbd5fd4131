"""Ways to train on few labels, in families: what people use, ours, and those that see images without a label, too."""

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from examples.experiments.common.fast import gaussian_noise
from examples.experiments.common.rivals import plain, random_jacobian
from torchlipreg.outputs import root_probabilities


def label_smoothing(model, x, y, smoothing):
    """Szegedy et al., arXiv:1512.00567."""
    return F.cross_entropy(model(x), y, label_smoothing=smoothing)


def mixup(model, x, y, alpha):
    """Zhang et al., arXiv:1710.09412: one share for the batch, as in the authors' code."""
    share = torch.distributions.Beta(alpha, alpha).sample().item()
    others = torch.randperm(len(x))
    outputs = model(share * x + (1 - share) * x[others])
    return share * F.cross_entropy(outputs, y) + (1 - share) * F.cross_entropy(outputs, y[others])


def with_noise(loss):
    """Two rivals at once: a loss at images with Gaussian noise."""

    def noisy(model, x, y, sigma, **arguments):
        return loss(model, x + sigma * torch.randn_like(x), y, **arguments)

    noisy.__name__ = f"{loss.__name__} with noise"  # what records call it
    return noisy


def adversarial_smoothness(model, x, epsilon=2.0, probe=1e-1, steps=1):
    """Miyato et al., arXiv:1704.03976: the divergence from f(x), a constant, at the worst point on the ε-sphere."""
    target = model(x).detach().log_softmax(1)
    direction = _unit(torch.randn_like(x))
    for _ in range(steps):
        moved = (x + probe * direction).requires_grad_()
        (slope,) = torch.autograd.grad(_divergence(model(moved), target), moved)
        direction = _unit(slope)
    return _divergence(model(x + epsilon * direction), target)


def entropy(outputs):
    """Grandvalet and Bengio, 2004: unlabelled images are to be decided about."""
    return -(outputs.softmax(1) * outputs.log_softmax(1)).sum(1).mean()


def imbalance(outputs):
    """Hu et al., arXiv:1702.08720: less the entropy of the mean prediction, for classes that are equally frequent."""
    mean = outputs.softmax(1).mean(0)
    return (mean * mean.clamp_min(1e-12).log()).sum()


def _divergence(outputs, log_target):
    return F.kl_div(outputs.log_softmax(1), log_target, reduction="batchmean", log_target=True)


def _unit(v):
    return v / v.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, *[1] * (v.dim() - 1))


@dataclass(frozen=True)
class Way:
    """A family's member.

    Attributes:
        family: Its members differ in one number, chosen by validation labels.
        loss: (model, x, y, **arguments) -> loss of the labelled batch.
        penalty: Arguments of LipschitzPenalty, added on the labelled batch, or on the unlabelled one.
        unlabelled: None, "penalty", or "adversarial" (virtual adversarial training): what unlabelled batches are for.
        warmup: Steps over which the unlabelled terms grow to their weight.
        early: Whether the best weights on the validation labels are kept.
    """

    family: str
    loss: object = plain
    arguments: dict = field(default_factory=dict)
    weight_decay: float = 0.01  # AdamW's own
    dropout: float = 0.0
    penalty: dict | None = None
    unlabelled: str | None = None
    warmup: int = 0
    decided: float = 0.0  # weight of the entropy
    early: bool = False
    balanced: float = 0.0  # weight of the imbalance
    steps: int | None = None  # None: the experiment's

    def settings(self):
        shown = {name: value for name, value in vars(self).items() if name not in ("family", "steps")}
        if not self.balanced:  # as in records from before there was such a term
            del shown["balanced"]
        named = {name: getattr(value, "__name__", value) for name, value in shown.items()}
        if self.penalty is not None:
            named["penalty"] = {name: getattr(value, "__name__", str(value)) for name, value in self.penalty.items()}
        return named


def tv(weight, norm, radius, **options):
    return {"method": "tv", "weight": weight, "input_norm": norm, "radius": radius, "scale": radius} | options


def unlabelled(weight, radius=1.0):
    return tv(weight, 2, radius, output=root_probabilities, one_sided=True)


WAYS = {
    "plain": Way("plain"),
    **{f"decay-{v:g}": Way("weight decay", weight_decay=v) for v in (0.1, 1.0)},
    **{f"dropout-{v:g}": Way("dropout", dropout=v) for v in (0.5, 0.2, 0.8)},
    **{f"noise-{v:g}": Way("Gaussian noise", gaussian_noise, {"sigma": v}) for v in (0.4, 0.2, 0.8)},
    **{f"tv-inf-{v:g}": Way("tv ℓ∞, ε .1", penalty=tv(v, math.inf, 0.1)) for v in (0.1, 0.3, 1.0, 3.0)},
    **{f"tv-inf-far-{v:g}": Way("tv ℓ∞, ε .2", penalty=tv(v, math.inf, 0.2)) for v in (0.1, 0.3)},
    **{f"tv-pixel-{v:g}": Way("tv ℓ∞, ε 8/255", penalty=tv(v, math.inf, 8 / 255)) for v in (0.1, 0.3, 0.01)},
    **{f"tv-2-{v:g}": Way("tv ℓ2, ε 1", penalty=tv(v, 2, 1.0)) for v in (0.1, 0.3, 0.01, 1.0)},
    **{f"smoothing-{v:g}": Way("label smoothing", label_smoothing, {"smoothing": v}) for v in (0.1, 0.3, 0.5)},
    **{f"mixup-{v:g}": Way("mixup", mixup, {"alpha": v}) for v in (1.0, 0.3)},
    **{f"jacobian-{v:g}": Way("Jacobian penalty", random_jacobian, {"weight": v}) for v in (0.01, 0.1, 0.3, 1.0)},
    "early": Way("early stopping", early=True),
    **{
        f"noise-jacobian-{v:g}": Way("noise and Jacobian", with_noise(random_jacobian), {"sigma": 0.4, "weight": v})
        for v in (0.01, 0.1)
    },
    **{
        f"noise-smoothing-{v:g}": Way(
            "noise and smoothing", with_noise(label_smoothing), {"sigma": 0.4, "smoothing": v}
        )
        for v in (0.1, 0.3)
    },
}
UNLABELLED = {
    "vat": Way("unlabelled: VAT", unlabelled="adversarial"),
    "tv-unlabelled": Way("unlabelled: tv on √softmax, ℓ2", penalty=unlabelled(1.0), unlabelled="penalty", warmup=300),
    "tv-unlabelled-2": Way(
        "unlabelled: tv on √softmax, ℓ2", penalty=unlabelled(1.0, 2.0), unlabelled="penalty", warmup=300
    ),
    "tv-unlabelled-decided": Way(
        "unlabelled: the same and entropy", penalty=unlabelled(1.0), unlabelled="penalty", warmup=300, decided=0.1
    ),
    "vat-decided": Way("unlabelled: VAT and entropy", unlabelled="adversarial", decided=0.1, warmup=300),
    **{
        f"{name}-balanced{length}": Way(
            f"{family} and balance{words}",
            unlabelled=kind,
            penalty=unlabelled(weight) if kind == "penalty" else None,
            warmup=300,
            balanced=balance,
            steps=steps,
        )
        for length, words, steps, weight, balance in (
            ("", "", None, 1.0, 0.4),
            ("-long", ", 6,000 steps", 6_000, 10.0, 1.0),
        )
        for name, family, kind in (
            ("vat", "unlabelled: VAT", "adversarial"),
            ("tv-unlabelled", "unlabelled: tv on √softmax, ℓ2", "penalty"),
        )
    },
}
ALL = WAYS | UNLABELLED
