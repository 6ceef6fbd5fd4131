"""LipschitzTrainer beside the slow truth, for the tests with several processes."""

from __future__ import annotations

import contextlib

import pytest
import torch
from data_parallel import Net, assert_equal, average, local_task_gradient
from data_parallel import union_gradient as exact_gradient

pytest.importorskip("transformers")
from accelerate.state import AcceleratorState, GradientState, PartialState
from transformers import TrainingArguments

from torchlipreg.integrations.transformers import LipschitzTrainer

BATCH = 3
TIMEOUT = 180  # transformers is imported in the workers' first run


class OfMean(Net):
    """Its loss is the batch's mean."""

    def __init__(self):
        super().__init__("group")
        self.double()

    def forward(self, pixel_values, labels=None):
        y = super().forward(pixel_values)
        return y if labels is None else {"loss": y.square().mean(), "logits": y}


class OfItems(OfMean):
    """Its loss is divided by the items of all accumulated batches (of all processes, or of this one)."""

    def forward(self, pixel_values, labels=None, num_items_in_batch=None, **kwargs):
        y = Net.forward(self, pixel_values)
        return y if labels is None else {"loss": y.square().mean(1).sum() / num_items_in_batch, "logits": y}


def samples(count=48):
    generator = torch.Generator().manual_seed(5)
    return [
        {"pixel_values": torch.rand(1, 4, 4, generator=generator, dtype=torch.float64), "labels": 0}
        for _ in range(count)
    ]


@contextlib.contextmanager
def as_launched(rank, size):
    """The environment of a launched process, in the worker's process group if there is one."""
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    names = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": 0}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "1")
        for name, value in {**names, "MASTER_ADDR": "127.0.0.1"}.items():
            patch.setenv(name, str(value)) if size > 1 else patch.delenv(name, raising=False)
        yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def arguments(folder, **options):
    defaults = {
        "per_device_train_batch_size": BATCH,
        "optim": "sgd",
        "learning_rate": 0.1,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    return TrainingArguments(str(folder), **{**defaults, **options})


class Checked(LipschitzTrainer):
    """Adds up the slow truth beside each step, for a model whose forward adds nothing to the net's."""

    expected, steps = None, 0

    def plain(self):
        """Return the net as one process without wrappers would have it."""
        return self.model

    def compute_loss(self, model, inputs, *args, **kwargs):
        net = self.plain()
        found = super().compute_loss(model, inputs, *args, **kwargs)
        of_task = average(local_task_gradient(net, inputs["pixel_values"]))
        of_penalty = exact_gradient(net, self.penalty)[2]
        accumulate = self.args.gradient_accumulation_steps
        part = [(t + p) / accumulate for t, p in zip(of_task, of_penalty, strict=True)]
        self.expected = part if self.expected is None else [a + b for a, b in zip(self.expected, part, strict=True)]
        return found

    def check(self, gradients):
        assert_equal(gradients, self.expected)
        self.expected, self.steps = None, self.steps + 1
