"""One training with the one line, and what is measured of it."""

import statistics
import warnings
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from examples.experiments.transfer.subjects import SUBJECTS
from torchlipreg import LipschitzPenalty, gradient_ratio

BATCH, RATE = 64, 1e-3
EPSILON = 8 / 255  # the default radius
STEPS = 20  # of the attack
SETTINGS = ("plain", "default", "÷ 10", "× 10")
FACTORS = {"default": 1.0, "÷ 10": 0.1, "× 10": 10.0}


@dataclass(frozen=True)
class Run:
    subject: str
    setting: str
    seed: int
    method: str = "tv"

    def penalty(self, **options):
        """What a user writes: the one line with nothing set, or its weight times ten."""
        penalty = LipschitzPenalty(self.method, seed=self.seed, **options)
        penalty.weight *= FACTORS[self.setting]
        return penalty


def run(job, folder, quick=False):
    """Return the numbers of a run."""
    torch.set_num_threads(1)
    subject = SUBJECTS[job.subject]
    data = subject.load(folder, quick)
    if quick:
        data = data._replace(train_x=data.train_x[:256], train_y=data.train_y[:256], x=data.x[:64], y=data.y[:64])
    torch.manual_seed(job.seed)
    net = subject.build()
    optimizer = torch.optim.Adam(net.parameters(), lr=RATE)
    steps = (1 if quick else subject.epochs) * (len(data.train_x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3 * RATE, total_steps=steps)
    penalty = None if job.setting == "plain" else job.penalty(normalization=subject.normalization)
    criterion = F.mse_loss if subject.regression else F.cross_entropy
    rows, shares = torch.Generator().manual_seed(job.seed), []
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for step in range(steps):
            if step % (len(data.train_x) // BATCH) == 0:
                order = torch.randperm(len(data.train_x), generator=rows)
            i = order[step % (len(data.train_x) // BATCH) * BATCH :][:BATCH]
            x = seen(net, data.train_x[i], subject.normalization)
            out = net(x)
            loss = criterion(out, data.train_y[i])
            if penalty is not None:
                added = penalty(net, x.detach(), out)  # the one line
                if step % 50 == 49:
                    shares.append(gradient_ratio(loss, added, list(net.parameters())[-4:]))
                loss = loss + added
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    found = measures(net.eval().requires_grad_(False), data, subject)
    found |= {"share": statistics.median(shares) if shares else None, "steps": steps}
    return found | {"warnings": [str(w.message)[:60] for w in told if "penalty" in str(w.message)]}


def seen(net, x, normalization):
    """Return what the network sees: embeddings of words, normalised images, or the data as they are."""
    if hasattr(net, "embed"):
        return net.embed(x)
    if normalization is None:
        return x
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in normalization)
    return (x - mean) / std


def measures(net, data, subject):
    """Quality on clean data and within ε, and the largest movement of the output within ε."""
    x = data.x if not hasattr(net, "embed") else net.embed(data.x)

    def f(z):
        return net(z if hasattr(net, "embed") else seen(net, z, subject.normalization))

    clean = f(x)
    moved = f(attacked(lambda z: distance(f(z), clean), x, subject.bounds))
    movement = (moved - clean).norm(dim=1).mean().item()
    if subject.regression:
        quality = 1 - F.mse_loss(clean, data.y).item() / data.y.var(correction=0).item()
        return {"clean": quality, "movement": movement}
    worst = f(attacked(lambda z: F.cross_entropy(f(z), data.y, reduction="sum"), x, subject.bounds))
    hits = [(outputs.argmax(1) == data.y).float().mean().item() for outputs in (clean, worst)]
    return {"clean": hits[0], "attacked": hits[1], "movement": movement}


def distance(outputs, clean):
    return (outputs - clean).square().sum()


def attacked(objective, x, bounds):
    """PGD in the ε-cube from a random start (an objective may have no gradient at x itself)."""
    generator = torch.Generator().manual_seed(0)
    z = x + EPSILON * (2 * torch.rand(x.shape, generator=generator) - 1)
    for _ in range(STEPS):
        z = z.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(objective(z), z)
        z = x + (z.detach() + EPSILON / 4 * gradient.sign() - x).clamp(-EPSILON, EPSILON)
        z = z if bounds is None else z.clamp(*bounds)
    return z
