"""One model and one batch, and what a step of each contender costs on them."""

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch._functorch import config as functorch_config

from examples.experiments.common.clock import interleaved, quartiles
from examples.experiments.cost.contenders import CONTENDERS, Contender, Work, mlp
from examples.experiments.cost.measure import operations_and_memory

DEAR = 5  # times a plain step: what costs more takes part in every fourth round
TURN = 0.01  # seconds, at least, that a contender runs before it is the next one's turn


class Bench:
    """The contenders' steps on one model: forward, loss, backward, no optimiser."""

    def __init__(self, model, x, y, contenders, *, autocast=False, compiled=False):
        self.model, self.x, self.y, self.autocast = model, x, y, autocast
        self.called = model
        if compiled:
            torch._dynamo.config.recompile_limit = 64  # all contenders' graphs, of which a training loop has a few
            functorch_config.donated_buffer = False  # which refuses the rivals' retain_graph
            self.called = torch.compile(model)
        self.parameters = list(model.parameters())
        self.contenders = {"plain": CONTENDERS["plain"], **contenders}
        self.losses = {name: contender.start(len(x)) for name, contender in self.contenders.items()}
        self.device = x.device.type

    def cycle(self, name, times=1, model=None):
        """Take at least so many steps: as many as it takes until the contender does the same again."""
        for _ in range(self.steps(name, times)):
            with torch.autocast(self.device, torch.bfloat16, enabled=self.autocast):
                loss = self.losses[name](model or self.called, self.x, self.y)
            loss.backward(inputs=self.parameters)  # not the images': some rivals would pay for it, and nobody uses it
            self.model.zero_grad()

    def steps(self, name, times=1):
        period = self.contenders[name].period
        return period * math.ceil(times / period)

    def work(self):
        """What the count needs to know of the model."""
        forward, _ = operations_and_memory(lambda: self.model(self.x), self.device)
        plain, _ = self.operations_and_memory("plain")
        follows = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in self.model.modules())
        return Work(3 - plain / forward, follows, reuses=not (follows or self.autocast))

    def operations_and_memory(self, name):
        """Floating-point operations of a step, and the bytes that it needs at its peak, of the model as it is.

        Neither depends on what else the machine does. The memory is all that takes part: weights, gradients, batch,
        pairs and activations.
        """
        run = partial(self.cycle, name, model=self.model)
        run()  # the first look at a model is not what a step costs
        operations, memory = operations_and_memory(run, self.device)
        return operations / self.steps(name), memory

    def drop_refused(self):
        """Leave out what torch.compile cannot take: second derivatives."""
        for name in list(self.contenders):
            try:
                for _ in range(4):
                    self.cycle(name)
            except RuntimeError as e:
                if "double backward" not in str(e):
                    raise
                del self.contenders[name]

    def times(self, counted, rounds, budget):
        """Return for each contender the seconds per step in each round, None where it took no part."""
        plain = interleaved({"plain": partial(self.cycle, "plain")}, self.device, 5, math.inf)["plain"]
        turn = math.ceil(TURN / min(plain))
        runs = {name: partial(self.cycle, name, turn) for name in self.contenders}
        dear = [name for name in self.contenders if counted[name] * self.steps(name, turn) > DEAR * turn]
        times = interleaved(runs, self.device, rounds, budget, dear)
        return {name: [t and t / self.steps(name, turn) for t in values] for name, values in times.items()}

    def rows(self, rounds, budget):
        """Return a row of results for each contender, relative to the plain step (of the same round, for the time)."""
        work = self.work()
        counted = {name: c.count(work) / work.whole for name, c in self.contenders.items()}
        exact = {name: self.operations_and_memory(name) for name in self.contenders}
        if self.called is not self.model:
            self.drop_refused()
        times = self.times(counted, rounds, budget)
        return [
            {
                "contender": name,
                "milliseconds": 1000 * quartiles(times[name])[1],
                **_ratio(times[name], times["plain"]),
                "counted": counted[name],
                "operations": exact[name][0] / exact["plain"][0],
                "memory": exact[name][1] / exact["plain"][1],
                "rounds": sum(t is not None for t in times[name]),
            }
            for name in self.contenders
        ]


def overhead(size, device, rounds, budget):
    """Milliseconds that a call of the penalty takes beyond its forwards and backwards, on a two-layer network.

    Median and quartiles of the difference to a step that has the same forwards and backwards, and no penalty.
    """
    x, y = torch.rand(128, 1, size, size, device=device), torch.randint(10, (128,), device=device)
    model = mlp(size**2, 64, 10).to(device)
    bench = Bench(model, x, y, {"tv": CONTENDERS["tv"], "by hand": Contender(lambda batch: _by_hand, None)})
    runs = {name: partial(bench.cycle, name, 20) for name in ("tv", "by hand")}
    interleaved(runs, device, 3, math.inf)
    times = interleaved(runs, device, rounds, budget)
    values = [1000 * (a - b) / 20 for a, b in zip(times["tv"], times["by hand"], strict=True)]
    low, middle, high = quartiles(values)
    return {"inputs": size**2, "milliseconds": middle, "lower quartile": low, "upper quartile": high}


def _by_hand(model, x, y):
    outputs = model(x)
    z = x.detach().requires_grad_()
    (moved,) = torch.autograd.grad((model(z) - outputs.detach()).sum(), z)
    return F.cross_entropy(outputs, y) + (model(moved) - outputs).sum()


def _ratio(times, plain):
    low, middle, high = quartiles([t and t / p for t, p in zip(times, plain, strict=True)])
    return {"time": middle, "lower quartile": low, "upper quartile": high}
