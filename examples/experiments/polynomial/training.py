"""The network, the data with gaps, and one training of the one on the other."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from torchlipreg import LipschitzPenalty, operator_norm

DOMAIN = (-3.0, 3.0)
GAPS = ((-1.9, -0.4), (0.4, 1.9))  # no data here
GRID = torch.linspace(*DOMAIN, 301)[:, None]
TOLERANCE = 0.1  # |y − f(x)| up to here counts as accurate


def polynomial(x: Tensor) -> Tensor:
    """Return ε(0.5 + 0.01 x + x⁶), scaled to about 1 at the ends of the domain."""
    return (0.5 + 0.01 * x + x**6) / 3**6


def in_gaps(x: Tensor) -> Tensor:
    return sum((x > lo) & (x < hi) for lo, hi in GAPS).bool()


def draw_data(seed: int, n: int = 24, noise: float = 0.1) -> tuple[Tensor, Tensor]:
    """Draw n noisy points of the polynomial, spread evenly over the domain without its gaps, shape (n, 1) each."""
    generator = torch.Generator().manual_seed(seed)
    fine = torch.linspace(*DOMAIN, 2001)
    covered = fine[~in_gaps(fine)]
    position = (torch.arange(n) + torch.rand(n, generator=generator)) / n
    x = covered[(position * len(covered)).long(), None]
    return x, polynomial(x) + noise * torch.randn(x.shape, generator=generator)


def build_net() -> nn.Module:
    """Return a fully connected net that can over-fit: its first layer starts five times as steep as torch's own."""
    net = nn.Sequential(nn.Linear(1, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
    with torch.no_grad():
        net[0].weight *= 5
        net[0].bias *= 15
    return net


@dataclass(frozen=True)
class Run:
    """One training: everything that its result depends on. A weight of 0 is plain training."""

    seed: int
    method: str = "max"
    weight: float = 0.03
    ascent: str | None = None
    ascent_steps: int = 1
    step_size: float | None = None
    num_pairs: int | None = None
    steps: int = 300


@dataclass
class Fit:
    """What came out of a run."""

    run: Run
    x: np.ndarray
    y: np.ndarray
    curve: np.ndarray  # f on GRID
    slope: np.ndarray  # |f′| on GRID
    pairs: np.ndarray  # final (x, x′), shape (num_pairs, 2)
    mse: float
    loss: float  # mse + penalty
    accuracy: float  # part of the data within TOLERANCE of f
    true_accuracy: float  # part of the polynomial within TOLERANCE of f
    gap_error: float  # root mean square distance from the polynomial, where data is missing
    data_error: float  # the same where there is data
    estimate: float  # largest quotient that the last step's pairs saw
    seconds: float  # processor time per training step

    @property
    def steepest(self) -> float:
        """The largest |f′| on the grid: in one dimension the Lipschitz constant, up to the grid."""
        return float(self.slope.max())

    @property
    def end_slope(self) -> float:
        """The mean of |f′| over the outer 0.4 of the domain on both sides, where the polynomial is steepest."""
        return float(self.slope[np.abs(GRID.flatten().numpy()) > 2.6].mean())

    @property
    def distance_from_mean(self) -> float:
        """How far the network is from the best constant, the mean of the data, at worst."""
        return float(np.abs(self.curve - self.y.mean()).max())


def train(run: Run) -> Fit:
    torch.manual_seed(run.seed)
    x, y = draw_data(run.seed)
    net = build_net()
    penalty = LipschitzPenalty(
        run.method,
        run.weight,
        radius=1.0 if run.method == "tv" else None,
        input_norm=2,
        scale=1,
        bounds=DOMAIN,
        ascent=run.ascent,
        ascent_steps=run.ascent_steps,
        step_size=run.step_size,
        num_pairs=run.num_pairs,
        seed=run.seed,
    )
    optimizer = torch.optim.Adam(net.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=run.steps)
    start = time.process_time()
    for _ in range(run.steps):
        out = net(x)
        mse = nn.functional.mse_loss(out, y)
        loss = mse + penalty(net, x, out)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    seconds = (time.process_time() - start) / run.steps
    with torch.no_grad():
        curve, target, gap = net(GRID), polynomial(GRID), in_gaps(GRID)
    error = curve - target
    return Fit(
        run=run,
        x=x.flatten().numpy(),
        y=y.flatten().numpy(),
        curve=curve.flatten().numpy(),
        slope=operator_norm(net, GRID).numpy(),
        pairs=torch.cat(penalty.pairs, 1).numpy() if penalty.pairs else np.empty((0, 2)),
        mse=mse.item(),
        loss=loss.item(),
        accuracy=((out - y).abs() <= TOLERANCE).float().mean().item(),
        true_accuracy=(error.abs() <= TOLERANCE).float().mean().item(),
        gap_error=error[gap].square().mean().sqrt().item(),
        data_error=error[~gap].square().mean().sqrt().item(),
        estimate=penalty.estimate.item(),
        seconds=seconds,
    )


def train_all(runs: Iterable[Run]) -> dict[Run, Fit]:
    """Train each distinct run once, as many at a time as there are cores, one thread each."""
    runs = list(dict.fromkeys(runs))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), context, torch.set_num_threads, (1,)) as pool:
        return dict(zip(runs, tqdm(pool.map(train, runs), total=len(runs), desc="training", unit="net"), strict=True))
