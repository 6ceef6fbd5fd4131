"""One training on few labels, and what comes of it."""

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from examples.experiments.labels.subjects import SUBJECTS, with_dropout
from examples.experiments.labels.ways import ALL, adversarial_smoothness, entropy, imbalance
from torchlipreg import LipschitzPenalty

BATCH, UNLABELLED_BATCH, RATE = 64, 128, 1e-3
LOOK = 50  # steps between two looks at the validation labels, for early stopping
VALIDATION = 1_000  # at most; never more than there are labels to train on


@dataclass(frozen=True)
class Run:
    way: str
    labels: int
    wrong: float  # share of the labels that are wrong
    seed: int
    data: str
    split: str
    quick: bool
    out: Path
    of: str = "mnist"

    @property
    def path(self):
        wrong, of = f"-wrong{self.wrong:g}" if self.wrong else "", "" if self.of == "mnist" else f"{self.of}-"
        return self.out / f"{of}{self.way}-{self.labels}{wrong}-{self.seed}.json"

    def settings(self):
        of_training = {"steps": self.steps, "batch": BATCH, "learning_rate": RATE, "labels": self.labels}
        of = {} if self.of == "mnist" else {"of": self.of}  # as in records from before there were others
        where = {"wrong": self.wrong, "split": self.split, "quick": self.quick}
        return ALL[self.way].settings() | of_training | where | of

    @property
    def steps(self):
        return 60 if self.quick else ALL[self.way].steps or SUBJECTS[self.of].steps

    def make(self):
        torch.set_num_threads(1)
        subject = SUBJECTS[self.of]
        data = subject.load(self.data, self.split, self.quick)
        chosen, held_out = chosen_rows(data.train_y, self.labels, self.seed)
        labels = spoiled(data.train_y[chosen], self.wrong, self.seed)
        few = data.train_x[chosen], labels
        validation = data.train_x[held_out], data.train_y[held_out]
        net = trained(ALL[self.way], few, validation, data.train_x, self.steps, self.seed, subject.build)
        found = {f"{name} of validation": value for name, value in quality(net, *validation).items()}
        return found | quality(net, data.x, data.y)


def chosen_rows(y, count, seed):
    """Rows to train on, equally many of each class where the count allows it, and others to validate by."""
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    turns = torch.empty_like(order)  # how many of the same class come before
    for label in y.unique():
        of_class = (y[order] == label).nonzero().flatten()
        turns[of_class] = torch.arange(len(of_class))
    balanced = order[turns.argsort(stable=True)]
    return balanced[:count], balanced[count : count + min(count, VALIDATION)]


def spoiled(y, share, seed):
    """The same labels, a share of them replaced by another class."""
    generator = torch.Generator().manual_seed(seed)
    classes = int(y.max()) + 1
    spoilt = torch.rand(len(y), generator=generator) < share
    return torch.where(spoilt, (y + torch.randint(1, classes, y.shape, generator=generator)) % classes, y)


def trained(way, few, validation, images, steps, seed, build):
    """Return a trained network in eval mode."""
    torch.manual_seed(seed)
    (x, y), rows = few, torch.Generator().manual_seed(seed)
    net = with_dropout(build(x[0], int(y.max()) + 1), way.dropout)
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=way.weight_decay)
    penalty = None if way.penalty is None else LipschitzPenalty(**{"seed": seed} | way.penalty)
    best, kept = -1.0, None
    for step in range(steps):
        i = torch.randint(len(x), (BATCH,), generator=rows)
        loss = labelled_loss(way, net, x[i], y[i], penalty)
        if way.unlabelled is not None:
            more = images[torch.randint(len(images), (UNLABELLED_BATCH,), generator=rows)]
            growth = min(1.0, (step + 1) / way.warmup) if way.warmup else 1.0
            loss = loss + growth * unlabelled_loss(way, net, more, penalty)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if way.early and step % LOOK == LOOK - 1:
            found = quality(net.eval(), *validation)["accuracy"]
            net.train()
            if found > best:
                best, kept = found, copy.deepcopy(net.state_dict())
    if kept is not None:
        net.load_state_dict(kept)
    return net.eval().requires_grad_(False)


def labelled_loss(way, net, x, y, penalty):
    if penalty is None or way.unlabelled is not None:
        return way.loss(net, x, y, **way.arguments)
    outputs = net(x)
    return F.cross_entropy(outputs, y) + penalty(net, x, outputs)


def unlabelled_loss(way, net, x, penalty):
    outputs = net(x)
    loss = way.decided * entropy(outputs) if way.decided else outputs.new_zeros(())
    if way.balanced:
        loss = loss + way.balanced * imbalance(outputs)
    return loss + (adversarial_smoothness(net, x) if penalty is None else penalty(net, x, outputs))


@torch.no_grad()
def quality(net, x, y):
    outputs = net(x)
    return {
        "accuracy": (outputs.argmax(1) == y).float().mean().item(),
        "nll": F.cross_entropy(outputs, y).item(),
    }
