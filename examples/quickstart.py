"""Train on handwritten digits, with and without a Lipschitz penalty, then attack what came out.

    python examples/quickstart.py

Five ways of training the same small network on scikit-learn's digits (shipped with it, nothing is downloaded),
several seeds of each; then one table, and one picture of accuracy against the strength of the perturbation.
"""

import argparse
import math
import statistics
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from _attacks import autoattack, fgsm, gaussian_noise, pgd
from _benchmark_measure import interleaved
from _report import plot_curves, print_table
from _rivals import fgsm_training
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from tqdm import tqdm

from torchlipreg import LipschitzPenalty, lipschitz_lower_bound

EPSILON = 0.1  # of the table's attacks: a tenth of the range from white to black
TRAINING_EPSILON = 0.15  # of adversarial training and tv: best for both on held-out training images
STRENGTHS = {
    "FGSM": [0.0, 0.025, 0.05, 0.1, 0.15, 0.2],
    "PGD": [0.0, 0.025, 0.05, 0.1, 0.15, 0.2],
    "noise": [0.0, 0.1, 0.2, 0.3, 0.4, 0.5],
}
PERTURB = {"FGSM": fgsm, "PGD": pgd, "noise": gaussian_noise}

# The attacks move every pixel by at most ε, hence input_norm=inf; pixels lie in [0, 1], hence the bounds.
TV = {"method": "tv", "radius": TRAINING_EPSILON, "input_norm": math.inf, "bounds": (0, 1)}
PENALTIES = {
    "plain": {},
    "tv": {**TV, "weight": 1e-2},
    "tv, interval=5": {**TV, "weight": 4e-3, "interval": 5},
    "max": {"method": "max", "weight": 1e-2, "input_norm": math.inf, "bounds": (0, 1)},
    "FGSM training": {},
}


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
            loss = fgsm_training(self.model, x, y, TRAINING_EPSILON)
        else:
            outputs = self.model(x)
            loss = F.cross_entropy(outputs, y)
            if self.penalty is not None:
                loss = loss + self.penalty(self.model, x, outputs)  # the one added line
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def epoch(self, x, y, batch_size=128):
        for rows in torch.randperm(len(x)).split(batch_size):
            self.step(x[rows], y[rows])


def load_data():
    images, labels = load_digits(return_X_y=True)
    train, test = train_test_split(range(len(images)), test_size=500, random_state=0, stratify=labels)
    images, labels = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    return (images[train], labels[train]), (images[test], labels[test])


def evaluate(model, x, y):
    """Accuracy at every strength of every perturbation, and the Lipschitz estimate, of a model in eval mode."""
    model.eval().requires_grad_(False)

    def accuracy(points):
        return (model(points).argmax(1) == y).float().mean().item()

    found = {
        (name, strength): accuracy(PERTURB[name](model, x, y, strength) if strength else x)
        for name, strengths in STRENGTHS.items()
        for strength in strengths
    }
    return found | {"lipschitz": lipschitz_lower_bound(model, x, input_norm=math.inf, bounds=(0, 1))}


def accuracy_under_autoattack(model, x, y):
    images = x.unflatten(1, (1, 8, 8))  # its gradient-free part wants channels, rows and columns
    perturbed = autoattack(nn.Sequential(nn.Flatten(), model), images, y, EPSILON, batch_size=len(x))
    return (model(perturbed.flatten(1)).argmax(1) == y).float().mean().item()


def relative_step_times(x, y, rounds):
    """Time per step relative to plain training."""

    def steps(training):
        for _ in range(10):  # a multiple of every `interval`
            training.step(x[:128], y[:128])

    runs = {way: partial(steps, Training(way, seed=0)) for way in PENALTIES}
    interleaved(runs, "cpu", 1, math.inf)  # warms up
    median = {way: statistics.median(times) for way, times in interleaved(runs, "cpu", rounds, math.inf).items()}
    return {way: median[way] / median["plain"] for way in PENALTIES}


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path("out/quickstart.png"), help="the picture")
    parser.add_argument("--quick", action="store_true", help="two seeds, 10 epochs")
    parser.add_argument("--autoattack", action="store_true", help="also judge the first seed's models by AutoAttack")
    options = parser.parse_args(arguments)
    seeds, epochs, rounds = (2, 10, 3) if options.quick else (options.seeds, options.epochs, 20)

    torch.set_num_threads(1)  # so small a network gains nothing from more
    train, test = load_data()
    results = {way: [] for way in PENALTIES}
    with tqdm(total=seeds * len(PENALTIES) * epochs, unit="epoch") as bar:
        for seed in range(seeds):
            for way in PENALTIES:
                bar.set_description(f"seed {seed}, {way}")
                training = Training(way, seed)
                for _ in range(epochs):
                    training.epoch(*train)
                    bar.update()
                results[way].append(evaluate(training.model, *test))
                if options.autoattack and seed == 0:
                    results[way][-1]["AutoAttack"] = accuracy_under_autoattack(training.model, *test)

    print_table(results, relative_step_times(*train, rounds), EPSILON)
    plot_curves(results, STRENGTHS, options.out)
    print(f"Picture: {options.out}")
    return results


if __name__ == "__main__":
    main()
