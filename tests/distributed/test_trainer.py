"""LipschitzTrainer on several processes: the gradient of the union, and checkpoints of all pairs."""

from __future__ import annotations

import contextlib
import os

import numpy as np
import pytest
import torch
import torch.distributed as dist
from data_parallel import assert_same_on_all_ranks, build

pytest.importorskip("transformers")
from trainers import TIMEOUT, Checked, OfItems, OfMean, arguments, as_launched, samples
from transformers import TrainerCallback

from torchlipreg import DiscrepancyWeight, RadiusDecay, WeightWarmup
from torchlipreg.integrations.transformers import LipschitzTrainer

KINDS = {"mean": OfMean, "items": OfItems}


class UnderDDP(Checked):
    synchronised = ()

    def compute_loss(self, model, *args, **kwargs):
        self.synchronised = (*self.synchronised, model.require_backward_grad_sync)
        return super().compute_loss(model, *args, **kwargs)

    def check(self, gradients):
        super().check(gradients)
        assert self.synchronised == (False,) * (self.args.gradient_accumulation_steps - 1) + (True,)
        self.synchronised = ()


class Look(TrainerCallback):
    trainer = None

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.trainer.check([p.grad for p in self.trainer.model.parameters()])


def train(rank, folder, kind, method, accumulate, across, static=False):
    with as_launched(rank, dist.get_world_size()):
        options = {"gradient_accumulation_steps": accumulate, "average_tokens_across_devices": across, "max_steps": 2}
        options |= {"ddp_static_graph": static, "ddp_find_unused_parameters": not static}
        look = Look()
        t = UnderDDP(
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
