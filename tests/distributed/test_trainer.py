"""LipschitzTrainer on several processes: the gradient of the union, and checkpoints of all pairs."""

from __future__ import annotations

import contextlib
import os

import numpy as np
import pytest
import torch
import torch.distributed as dist
from data_parallel import Net, assert_equal, assert_same_on_all_ranks, average, build, local_task_gradient
from data_parallel import union_gradient as exact_gradient

pytest.importorskip("transformers")
from accelerate.state import AcceleratorState, GradientState, PartialState
from transformers import TrainerCallback, TrainingArguments

from torchlipreg import DiscrepancyWeight, RadiusDecay, WeightWarmup
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
    """Adds up the slow truth beside each step."""

    expected, synchronised, steps = None, (), 0

    def compute_loss(self, model, inputs, *args, **kwargs):
        found = super().compute_loss(model, inputs, *args, **kwargs)
        of_task = average(local_task_gradient(self.model, inputs["pixel_values"]))
        of_penalty = exact_gradient(self.model, self.penalty)[2]
        accumulate = self.args.gradient_accumulation_steps
        part = [(t + p) / accumulate for t, p in zip(of_task, of_penalty, strict=True)]
        self.expected = part if self.expected is None else [a + b for a, b in zip(self.expected, part, strict=True)]
        self.synchronised = (*self.synchronised, model.require_backward_grad_sync)
        return found


class Look(TrainerCallback):
    def __init__(self):
        self.trainer = None

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        t = self.trainer
        assert_equal([p.grad for p in t.model.parameters()], t.expected)
        assert t.synchronised == (False,) * (args.gradient_accumulation_steps - 1) + (True,)
        t.expected, t.synchronised, t.steps = None, (), t.steps + 1


KINDS = {"mean": OfMean, "items": OfItems}


def train(rank, folder, kind, method, accumulate, across, static=False):
    with as_launched(rank, dist.get_world_size()):
        options = {"gradient_accumulation_steps": accumulate, "average_tokens_across_devices": across, "max_steps": 2}
        options |= {"ddp_static_graph": static, "ddp_find_unused_parameters": not static}
        look = Look()
        t = Checked(
            model=KINDS[kind](),
            args=arguments(folder, **options),
            train_dataset=samples(),
            penalty=build(method),
            callbacks=[look],
        )
        look.trainer = t
        t.train()
        assert t.steps == 2
        values = [line["penalty"] for line in t.state.log_history if "loss" in line]
        assert len(values) == 2
        assert_same_on_all_ranks(torch.tensor(values))
        return [p.detach() for p in t.model.parameters()]


@pytest.mark.parametrize(("kind", "across"), [("mean", True), ("items", True), ("items", False)])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("method", ["max", "tv"])
def test_gradients_are_those_of_the_union(two, tmp_path, kind, method, accumulate, across):
    first, second = two.run(train, tmp_path, kind, method, accumulate, across, timeout=TIMEOUT)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_static_graph(two, tmp_path):
    two.run(train, tmp_path, "mean", "tv", 1, True, True, timeout=TIMEOUT)


def test_three_processes(pools, tmp_path):
    pools[3].run(train, tmp_path, "items", "sum", 2, True, timeout=TIMEOUT)


def keep(rank, folder, steps, resume=None):
    """Train, and return the parameters and this process's pairs."""
    size = dist.get_world_size() if dist.is_initialized() else 1
    with as_launched(rank, size):
        options = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 2, "max_steps": steps}
        t = LipschitzTrainer(
            model=OfMean(),
            args=arguments(folder, optim="adamw_torch", **options),
            train_dataset=samples(),
            penalty=build("max"),
        )
        t.train(resume_from_checkpoint=resume)
        return [p.detach() for p in t.model.parameters()], t.penalty.pairs


def restored(rank, checkpoint, folder):
    """The pairs with which a resumed training begins."""

    class Stop(Exception):
        pass

    class Before(TrainerCallback):
        def on_train_begin(self, *args, **kwargs):
            raise Stop

    size = dist.get_world_size() if dist.is_initialized() else 1
    with as_launched(rank, size):
        t = LipschitzTrainer(
            model=OfMean(),
            args=arguments(folder, max_steps=4),
            train_dataset=samples(),
            penalty=build("max"),
            callbacks=[Before()],
        )
        with contextlib.suppress(Stop):
            t.train(resume_from_checkpoint=checkpoint)
        return t.penalty.pairs


def test_resumed_equals_uninterrupted(two, tmp_path):
    whole = two.run(keep, tmp_path / "whole", 4, timeout=TIMEOUT)
    saved = str(tmp_path / "whole" / "checkpoint-2")
    resumed = two.run(keep, tmp_path / "resumed", 4, saved, timeout=TIMEOUT)
    for (ours, pairs), (theirs, others) in zip(whole, resumed, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
        assert torch.equal(pairs.x_prime, others.x_prime)
    assert not torch.equal(whole[0][1].x_prime, whole[1][1].x_prime)
    assert [f for f in os.listdir(saved) if f.startswith("lipschitz")] == ["lipschitz_penalty_0.bin"]

    os.unlink(os.path.join(saved, "lipschitz_penalty_0.bin"))
    without = two.run(keep, tmp_path / "without", 4, saved, timeout=TIMEOUT)
    assert not all(torch.equal(a, b) for a, b in zip(whole[0][0], without[0][0], strict=True))


def test_checkpoints_hold_the_pairs_of_all_processes(pools, tmp_path):
    saved = pools[2].run(keep, tmp_path / "saved", 2, timeout=TIMEOUT)
    checkpoint = str(tmp_path / "saved" / "checkpoint-2")
    everyone = torch.cat([pairs.x_prime for _, pairs in saved]).flatten(1).tolist()
    one = [restored(0, checkpoint, tmp_path / "one")]
    three = pools[3].run(restored, checkpoint, tmp_path / "three", timeout=TIMEOUT)
    for found in (one, three):
        assert sorted(torch.cat([pairs.x_prime for pairs in found]).flatten(1).tolist()) == sorted(everyone)


def follow(rank, folder):
    """Train with schedules and an accuracy of the evaluation; return what they made of weight and radius."""
    with as_launched(rank, dist.get_world_size()):
        penalty = build("max", radius=0.1)
        schedules = [DiscrepancyWeight(penalty, 0.5, 0.01), RadiusDecay(penalty, 0.5), WeightWarmup(penalty, 3)]
        options = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2, "max_steps": 8}
        t = LipschitzTrainer(
            model=OfMean(),
            args=arguments(folder, **options),
            train_dataset=samples(24),
            eval_dataset=samples(7),
            compute_metrics=lambda p: {"accuracy": float(np.abs(p.predictions).mean() % 1)},
            penalty=penalty,
            schedules=schedules,
            accuracy="accuracy",
        )
        t.train()
        return penalty.weight, penalty.radius, [p.detach() for p in t.model.parameters()]


def test_schedules_agree(two, tmp_path):
    (*ours, first), (*theirs, second) = two.run(follow, tmp_path, timeout=TIMEOUT)
    assert ours == theirs
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert (tmp_path / "checkpoint-8" / "lipschitz_schedules.bin").exists()
