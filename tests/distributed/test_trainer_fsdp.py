"""LipschitzTrainer with FSDP2 on two processes: the gradient of the union, and checkpoints that go on bit by bit.

Accelerate shards on GPUs alone. Its processes are told here that theirs are some, which makes it shard on the CPU.
"""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from data_parallel import build

pytest.importorskip("transformers")
from accelerate.state import DistributedType, PartialState
from trainers import TIMEOUT, Checked, OfMean, arguments, as_launched, samples
from transformers import TrainerCallback


class Sharded(Checked):
    whole = None

    def plain(self):
        if self.whole is None:
            self.whole = OfMean()
        full = {name: value.full_tensor() for name, value in self.model.state_dict().items()}
        self.whole.load_state_dict(full)
        return self.whole


class Look(TrainerCallback):
    trainer = None

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.trainer.check([p.grad.full_tensor() for p in self.trainer.model.parameters()])


def train(rank, folder, method, accumulate=1, steps=2, resume=None):
    """Train with sharded parameters; return the whole parameters and this process's pairs."""
    with as_launched(rank, dist.get_world_size()):
        args = arguments(
            folder,
            optim="adamw_torch",
            gradient_accumulation_steps=accumulate,
            max_steps=steps,
            save_strategy="steps",
            save_steps=2,
            fsdp=True,
            fsdp_config={"version": 2, "auto_wrap_policy": "NO_WRAP", "reshard_after_forward": True},
        )
        assert args.device.type == "cpu"  # asking makes the state that the next line corrects
        with patch.dict(PartialState._shared_state, distributed_type=DistributedType.MULTI_GPU):
            look = Look()
            t = Sharded(model=OfMean(), args=args, train_dataset=samples(), penalty=build(method), callbacks=[look])
            look.trainer = t
            t.train(resume_from_checkpoint=resume)
        assert t.steps == steps - (2 if resume else 0)
        assert type(t.model).__name__.startswith("FSDP")
        return [p.detach().full_tensor() for p in t.model.parameters()], t.penalty.pairs


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("method", ["max", "tv"])
def test_gradients_are_those_of_the_union(two, tmp_path, method, accumulate):
    two.run(train, tmp_path, method, accumulate, timeout=TIMEOUT)


def test_resumed_equals_uninterrupted(two, tmp_path):
    whole = two.run(train, tmp_path / "whole", "max", 1, 4, timeout=TIMEOUT)
    saved = str(tmp_path / "whole" / "checkpoint-2")
    resumed = two.run(train, tmp_path / "resumed", "max", 1, 4, saved, timeout=TIMEOUT)
    for (ours, pairs), (theirs, others) in zip(whole, resumed, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
        assert torch.equal(pairs.x_prime, others.x_prime)
