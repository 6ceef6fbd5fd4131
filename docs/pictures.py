"""Draw the pictures of "how it works": the library's own ascent on functions that can be seen.

    python docs/pictures.py

Writes into docs/images. The polynomial's pictures there come from `python -m examples.experiments.polynomial`.
"""

import itertools
import math
from pathlib import Path

import matplotlib
import torch
from sklearn.datasets import load_digits
from torch import nn

from torchlipreg import difference_quotient, operator_norm
from torchlipreg.geometry.ascent import ascend
from torchlipreg.geometry.norms import rescale
from torchlipreg.geometry.pairs import PairSet, draw_in_ball
from torchlipreg.geometry.quotient import PairQuotient, Resolution
from torchlipreg.geometry.rules import SGD, Adam, Nesterov, Power

matplotlib.use("Agg")
from matplotlib import pyplot as plt

IMAGES = Path(__file__).parent / "images"
BLACK, ORANGE, BLUE, GREEN, PINK = "#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7"  # Okabe and Ito's palette
plt.rcParams |= {"font.size": 11, "axes.titlesize": 12, "legend.frameon": False, "figure.dpi": 110}
plt.rcParams |= {"axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "torchlipreg"}


def path_of(f, pairs, p, rule, steps, *, power, project=lambda pairs: pairs):
    """Return the pairs before, and after each step of an ascent with anchored x."""
    q = PairQuotient(f, p, 2, Resolution(None, 1e-6))
    objective = q.height if power else q.square
    found, memory = [pairs], rule.start(pairs)
    for _ in range(steps):
        pairs, memory = ascend(pairs, memory, rule, objective, steps=1, anchored=True, project=project)
        found.append(pairs)
    return found


def draw_turning():
    """A pair turns on its ball: x stays, x′ goes where the output changes most."""
    torch.manual_seed(5)
    net = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 3)).requires_grad_(False)
    with torch.no_grad():
        net[0].weight *= 1.6
    x, radius = torch.tensor([[0.2, -0.1]]), 0.5
    fig, axes = plt.subplots(1, 2, figsize=(10.6, 4.7), layout="constrained", sharey=True)
    steps = torch.linspace(-0.72, 0.72, 161)
    grid = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1).flatten(0, 1)
    angles = torch.linspace(0, 2 * math.pi, 401)  # 401: the corners are among them
    circle = torch.stack([angles.cos(), angles.sin()], 1)
    for ax, p, name, start in zip(axes, (2, math.inf), ("ℓ2", "ℓ∞"), (1.0, 0.9), strict=True):
        values = difference_quotient(net, x.expand_as(grid), x + grid, input_norm=p).view(161, 161)
        shown = ax.contourf(x[0, 0] + steps, x[0, 1] + steps, values, 14, cmap="YlGnBu")
        ball = x + rescale(circle, radius, p)
        ax.plot(*ball.T, color=BLACK, lw=1.5)
        offset = rescale(torch.tensor([[math.cos(start), math.sin(start)]]), radius, p)
        found = path_of(net, PairSet(x, x + offset), p, Power(p, anchored=True), 4, power=True)
        places = torch.cat([pairs.x_prime for pairs in found])
        for i, (a, b) in enumerate(itertools.pairwise(places)):
            if (b - a).norm() > 0.02:
                arrow = {"arrowstyle": "-|>", "color": ORANGE, "lw": 2, "shrinkA": 5, "shrinkB": 5}
                ax.annotate("", b, a, arrowprops=arrow | {"connectionstyle": f"arc3,rad={-0.15 if i else -0.2}"})
        ax.plot(*places.T, "o", color=ORANGE, ms=7, mec="white")
        ax.plot(*torch.cat([x, places[-1:]]).T, color=ORANGE, lw=1.5, ls="--")
        ax.plot(*x[0], "o", color=BLACK, ms=8, mec="white")
        ax.annotate("x stays", x[0], (-58, -16), textcoords="offset points", weight="bold")
        ax.annotate(
            "x′ starts",
            places[0],
            (10, 6) if p == 2 else (-72, 8),
            textcoords="offset points",
            color=ORANGE,
            weight="bold",
        )
        quotients = [float(difference_quotient(net, x, place[None], input_norm=p)) for place in places]
        ax.set_title(f"{name}: quotient {quotients[0]:.2f} → {' → '.join(f'{q:.2f}' for q in quotients[1:4])}")
        ax.set(aspect="equal", xlabel="first input")
        fig.colorbar(shown, ax=ax, shrink=0.85, label="quotient of (x, x′)")
    axes[0].set_ylabel("second input")
    return fig


def trained_net(x, y):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)
    for _ in range(30):
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()
    return net.requires_grad_(False)


def draw_climbing():
    """The quotient climbs from step to step, towards the local Lipschitz constant."""
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    net = trained_net(x, y)
    x, radius, steps = x[:64], 0.1, 10
    pairs = draw_in_ball(x, radius, 2, torch.Generator().manual_seed(1), on_sphere=True)
    top = operator_norm(net, x).mean()

    def on_ball(moved):
        return PairSet(moved.x, moved.x + rescale(moved.x_prime - moved.x, radius, 2))

    rules = {
        "power step (no step size)": (Power(2, anchored=True), True, "o-", BLUE),
        "Nesterov, τ = 10⁻⁵": (Nesterov(1e-5), False, "s--", GREEN),
        "SGD with momentum, τ = 10⁻⁵": (SGD(1e-5, 0.9), False, "^-.", ORANGE),
        "Adam, τ = 0.003": (Adam(0.003), False, "v:", PINK),
    }
    fig, ax = plt.subplots(figsize=(7.4, 4.3), layout="constrained")
    for name, (rule, power, style, color) in rules.items():
        found = path_of(net, pairs, 2, rule, steps, power=power, project=on_ball)
        means = [difference_quotient(net, z.x, z.x_prime).mean() for z in found]
        ax.plot(range(steps + 1), means, style, color=color, label=name)
    ax.axhline(top, color=BLACK, ls=":", lw=1.5)
    ax.annotate(
        "local Lipschitz constant (operator norm of the Jacobian)",
        (steps, top),
        (0, 6),
        ha="right",
        textcoords="offset points",
    )
    ax.set(xlabel="ascent steps", ylabel="quotient, mean of 64 digits", ylim=(0, None), xticks=range(0, steps + 1, 2))
    ax.legend(loc="lower right")
    return fig


def main():
    IMAGES.mkdir(exist_ok=True)
    for name, draw in {"turning.png": draw_turning, "climbing.png": draw_climbing}.items():
        draw().savefig(IMAGES / name)
        print(IMAGES / name)


if __name__ == "__main__":
    main()
