"""Train on handwritten digits, with and without a Lipschitz penalty, then attack what came out.

    python examples/quickstart.py

Five ways of training one small network on scikit-learn's digits, which come with it; a table, and a picture.
"""

import argparse
import statistics
import time
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from secmlt.adv.backends import Backends
from secmlt.adv.evasion.pgd import PGD
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from tqdm import tqdm

from torchlipreg import LipschitzPenalty, lipschitz_lower_bound

EPSILONS = [0.0, 0.025, 0.05, 0.1, 0.15, 0.2]  # largest change of a pixel, which lies in [0, 1]
TRAINING_EPSILON = 0.15  # of adversarial training and tv: best for both on held-out training images
SIGMA = 0.4  # of the noise
TV = {"method": "tv", "radius": TRAINING_EPSILON, "bounds": (0, 1)}
PENALTIES = {
    "plain": None,
    "tv": TV | {"weight": 0.4},
    "tv, interval=5": TV | {"weight": 0.2, "interval": 5},
    "max": {"method": "max", "weight": 0.15, "scale": 0.25, "bounds": (0, 1)},
    "FGSM training": None,
}
STYLES = [("#000000", ":"), ("#0072B2", "-"), ("#56B4E9", "--"), ("#009E73", "-."), ("#D55E00", "--")]  # Okabe and Ito


class Training:
    """One of the five ways to train, step by step: a plain loop with one added line."""

    def __init__(self, way, seed):
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=3e-3)
        self.penalty = LipschitzPenalty(**PENALTIES[way], seed=seed) if PENALTIES[way] else None
        self.adversarial = way == "FGSM training"

    def step(self, x, y):
        if self.adversarial:
            x = fgsm(self.model, x, y, TRAINING_EPSILON)
        outputs = self.model(x)
        loss = F.cross_entropy(outputs, y)
        if self.penalty is not None:
            loss = loss + self.penalty(self.model, x, outputs)  # the one added line
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def epoch(self, x, y):
        for rows in torch.randperm(len(x)).split(128):
            self.step(x[rows], y[rows])


def fgsm(model, x, y, epsilon):
    """One step along the sign of the gradient (Goodfellow et al., arXiv:1412.6572)."""
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), y), x)
    return (x + epsilon * gradient.sign()).detach().clamp(0, 1)


def pgd(model, x, y, epsilon, steps=20):
    # One step more, as it returns the best point that it has evaluated, which its last step's is not.
    attack = PGD("linf", epsilon, steps + 1, step_size=epsilon / 4, backend=Backends.NATIVE)
    ((perturbed, _),) = attack(model, [(x, y)], stream=True)
    return perturbed.detach()


def load_data():
    images, labels = load_digits(return_X_y=True)
    split = train_test_split(images / 16, labels, test_size=500, random_state=0, stratify=labels)
    x, x_test, y, y_test = (torch.tensor(part) for part in split)
    return (x.float(), y), (x_test.float(), y_test)


def evaluate(model, x, y):
    """Accuracy at every strength and under noise, and the Lipschitz estimate, of a model in eval mode."""
    model.eval().requires_grad_(False)

    def accuracy(points):
        return (model(points).argmax(1) == y).float().mean().item()

    found = {epsilon: accuracy(pgd(model, x, y, epsilon) if epsilon else x) for epsilon in EPSILONS}
    noisy = x + SIGMA * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    bound = lipschitz_lower_bound(model, x, input_norm=float("inf"), bounds=(0, 1))
    return found | {"noise": accuracy(noisy.clamp(0, 1)), "lipschitz": bound}


def relative_step_times(x, y, rounds):
    """Time per step relative to plain training; all take turns, so that a busy machine slows them alike."""
    trainings, times = {way: Training(way, seed=0) for way in PENALTIES}, {way: [] for way in PENALTIES}
    for _ in range(rounds + 1):
        for way, training in trainings.items():
            start = time.perf_counter()
            for _ in range(10):  # a multiple of every `interval`
                training.step(x[:128], y[:128])
            times[way].append(time.perf_counter() - start)
    return {way: statistics.median(times[way][1:]) / statistics.median(times["plain"][1:]) for way in PENALTIES}


def show(results, step_times, path):
    columns = {"clean": 0.0, "PGD 0.1": 0.1, "PGD 0.2": 0.2, f"noise {SIGMA}": "noise", "Lipschitz ≥": "lipschitz"}
    table = Table(title="Accuracy on 500 unseen digits in per cent, mean ± standard deviation over the seeds")
    for column in ["training", *columns, "time/step"]:
        table.add_column(column, no_wrap=True)
    figure, axis = plt.subplots(figsize=(8, 5), layout="constrained")
    for (way, runs), (colour, dash) in zip(results.items(), STYLES, strict=True):
        values = ([run[key] * (1 if key == "lipschitz" else 100) for run in runs] for key in columns.values())
        cells = (f"{statistics.mean(v):.1f} ± {statistics.stdev(v):.1f}" for v in values)
        table.add_row(way, *cells, f"{step_times[way]:.1f} ×")
        means = [100 * statistics.mean(run[epsilon] for run in runs) for epsilon in EPSILONS]
        axis.plot(EPSILONS, means, dash, color=colour, label=way, linewidth=2)
    axis.set(xlabel="largest change of a pixel, ε (PGD, 20 steps)", ylabel="accuracy (%)", ylim=(0, 100))
    axis.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    Console(width=120).print(table, f"Picture: {path}")


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/quickstart.png"), help="the picture")
    parser.add_argument("--quick", action="store_true", help="two seeds, 10 epochs; otherwise five, 60")
    options = parser.parse_args(arguments)
    seeds, epochs, rounds = (2, 10, 3) if options.quick else (5, 60, 20)
    torch.set_num_threads(1)  # so small a network gains nothing from more
    (train, test), results = load_data(), {way: [] for way in PENALTIES}
    for seed, way in tqdm([(seed, way) for seed in range(seeds) for way in PENALTIES], unit="training"):
        training = Training(way, seed)
        for _ in range(epochs):
            training.epoch(*train)
        results[way].append(evaluate(training.model, *test))
    show(results, relative_step_times(*train, rounds), options.out)
    return results


if __name__ == "__main__":
    main()
