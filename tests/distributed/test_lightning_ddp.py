"""Lightning's Trainer and Fabric on several processes: gradients, checkpoints, resuming."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
from data_parallel import METHODS, Net, assert_equal, average, batch, build, gather, local_task_gradient, task_loss
from data_parallel import union_gradient as exact_gradient
from torch.utils.data import DataLoader
from zoo import Seen

pytest.importorskip("lightning")
import lightning as L
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.fabric.strategies import DDPStrategy as FabricDDP
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy

from torchlipreg import WeightWarmup
from torchlipreg.integrations.lightning import LipschitzCallback


class Workers(LightningEnvironment):
    """The pool's processes, which are there already."""

    creates_processes_externally = True

    def world_size(self):
        return dist.get_world_size()

    def global_rank(self):
        return dist.get_rank()

    local_rank = global_rank


def trainer_of(folder, *callbacks, **options):
    if dist.is_initialized():
        options = {"strategy": DDPStrategy(cluster_environment=Workers()), "devices": dist.get_world_size(), **options}
    return L.Trainer(
        **{
            "accelerator": "cpu",
            "devices": 1,
            "logger": False,
            "callbacks": list(callbacks),
            "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks),
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "use_distributed_sampler": False,
            "default_root_dir": folder,
            "max_epochs": 1,
            **options,
        }
    )


def loader(rank, steps=4, first=0):
    return DataLoader([batch(rank, first + step) for step in range(steps)], batch_size=None)


class Module(L.LightningModule):
    """A net with the added line, that validates with it, too."""

    def __init__(self, penalty, manual=False):
        super().__init__()
        self.net, self.penalty, self.automatic_optimization = Net("group").double(), penalty, not manual
        self.checked, self.moved = 0, False

    def forward(self, x):
        return self.net(x)

    def shared_step(self, x):
        y = self(x)
        return task_loss(y) + self.penalty(self, x, y)

    def training_step(self, x, batch_idx):
        self.x = x
        if self.automatic_optimization:
            return self.shared_step(x)
        self.optimizers().zero_grad()
        self.manual_backward(self.shared_step(x))
        self.optimizers().step()
        return None

    def validation_step(self, x, batch_idx):
        before = self.penalty.pairs
        assert self.shared_step(x).isfinite()
        self.moved |= before is not None and self.penalty.pairs is not before

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class Checked(Module):
    """Compares each averaged gradient with that of one process that holds all pairs."""

    def on_train_start(self):
        self.expected = [torch.zeros_like(p) for p in self.net.parameters()]

    def on_after_backward(self):
        net, every = copy.deepcopy(self.net), self.trainer.accumulate_grad_batches
        of_task = average(local_task_gradient(net, self.x))
        of_penalty = exact_gradient(net, self.penalty)[2]
        self.expected = [e + (t + p) / every for e, t, p in zip(self.expected, of_task, of_penalty, strict=True)]
        if (self.trainer.fit_loop.epoch_loop.batch_idx + 1) % every == 0:
            assert_equal([p.grad for p in self.net.parameters()], self.expected)
            self.checked += 1
            self.on_train_start()


def train_checked(rank, folder, method, manual, accumulate):
    penalty = build(method)
    module = Checked(penalty, manual)
    trainer = trainer_of(folder, LipschitzCallback(penalty), accumulate_grad_batches=accumulate)
    trainer.fit(module, loader(rank), loader(rank, 2, 7))
    assert module.checked == 4 // accumulate
    assert not module.moved
    gathered = gather([p.detach() for p in module.net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(gathered[0], gathered[-1], strict=True))


@pytest.mark.parametrize(("manual", "accumulate"), [(False, 1), (False, 2), (True, 1)])
@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_those_of_one_process(two, tmp_path, method, manual, accumulate):
    two.run(train_checked, tmp_path, method, manual, accumulate)


def run(rank, folder, resume=None, callback=True, epochs=3):
    """Train, save after each epoch or go on, and return parameters and pairs."""
    penalty = build("max", weight=0.3)
    callbacks = [LipschitzCallback(penalty, schedules=[WeightWarmup(penalty, 9)])]
    callbacks = callbacks if callback else []
    callbacks.append(ModelCheckpoint(folder, "{epoch}", save_top_k=-1, every_n_epochs=1))
    module = Module(penalty)
    trainer_of(folder, *callbacks, max_epochs=epochs).fit(module, loader(rank), ckpt_path=resume)
    return copy.deepcopy(module.net.state_dict()), penalty.pairs


def test_resumed_equals_uninterrupted(two, tmp_path):
    whole = two.run(run, tmp_path)
    resumed = two.run(run, tmp_path / "resumed", tmp_path / "epoch=0.ckpt")
    without = two.run(run, tmp_path / "without", tmp_path / "epoch=0.ckpt", False)
    for rank in range(2):
        for name, value in whole[rank][0].items():
            assert torch.equal(resumed[rank][0][name], value)
        assert torch.equal(resumed[rank][1].x_prime, whole[rank][1].x_prime)
    assert not torch.equal(without[0][0]["head.weight"], whole[0][0]["head.weight"])


def load(rank, path):
    penalty = build("max", weight=0.3)
    callback, found = LipschitzCallback(penalty, schedules=[WeightWarmup(penalty, 9)]), []
    module = Module(penalty)
    module.on_train_start = lambda: found.append(penalty.pairs)
    trainer_of(path.parent, callback, max_epochs=2).fit(module, loader(rank), ckpt_path=path)
    return found[0]


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec", "ignore:.*have no `val_data")
@pytest.mark.filterwarnings("ignore:.*logging interval", "ignore:Be aware that when using `ckpt_path`")
def test_checkpoints_hold_the_pairs_of_all_processes(pools, tmp_path):
    saved = pools[2].run(run, tmp_path, None, True, 1)
    path = tmp_path / "epoch=0.ckpt"
    for processes in (pools[2].run(load, path), pools[3].run(load, path), [load(0, path)]):
        got, expected = torch.cat([pairs.x_prime for pairs in processes]), torch.cat([p.x_prime for _, p in saved])
        assert sorted(got.flatten(1).tolist()) == sorted(expected.flatten(1).tolist())


def new_fabric(precision="32-true", **ddp):
    strategy = FabricDDP(cluster_environment=Workers(), **ddp)
    fabric = L.Fabric(accelerator="cpu", devices=dist.get_world_size(), strategy=strategy, precision=precision)
    fabric.launch()
    return fabric


def train_with_fabric(rank, method, accumulate):
    fabric, penalty, net = new_fabric(), build(method), Net("group").double()
    model, optimizer = fabric.setup(net, torch.optim.SGD(net.parameters(), lr=0.1))
    expected = [torch.zeros_like(p) for p in net.parameters()]
    for step in range(accumulate):
        with fabric.no_backward_sync(model, enabled=step + 1 < accumulate):
            y = model(x := batch(rank, step))
            fabric.backward(task_loss(y) + penalty(model, x, y))
        of_task, of_penalty = average(local_task_gradient(net, x)), exact_gradient(net, penalty)[2]
        expected = [e + t + p for e, t, p in zip(expected, of_task, of_penalty, strict=True)]
    assert_equal([p.grad for p in net.parameters()], expected)
    optimizer.step()


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("method", METHODS)
def test_gradients_under_fabric(two, method, accumulate):
    two.run(train_with_fabric, method, accumulate)


def mixed_precision_with_fabric(rank):
    fabric, (penalty, reference) = new_fabric("bf16-mixed"), (build("tv", radius=0.003) for _ in range(2))
    net, seen, x = Net("group"), Seen(), batch(rank, dtype=torch.float32)
    exact, model = copy.deepcopy(net), fabric.setup(net)
    net.head.register_forward_hook(lambda module, inputs, y: seen.append(y.dtype))
    y = model(x)
    fabric.backward(task_loss(y) + penalty(model, x, y))
    reference(exact, x)
    assert abs(penalty.estimate - reference.estimate) <= 1e-4 * reference.estimate
    assert seen[0] == torch.bfloat16
    assert set(seen[1:]) == {torch.float32}


def test_mixed_precision_under_fabric(two):
    two.run(mixed_precision_with_fabric)


def save_and_load_with_fabric(rank, path):
    fabric, penalty, again = new_fabric(), build("max"), build("max")
    model = fabric.setup(Net("group").double())
    penalty(model, batch(rank))
    penalty.synchronize()
    fabric.save(path, {"model": model, "penalty": penalty})
    fabric.barrier()
    fabric.load(path, {"model": model, "penalty": again})
    assert torch.equal(again.pairs.x_prime, penalty.pairs.x_prime)
    assert len({tuple(pairs.x_prime.flatten().tolist()) for pairs in gather(again.pairs)}) == 2


def test_fabric_saves_the_pairs_of_all_processes(two, tmp_path):
    two.run(save_and_load_with_fabric, tmp_path / "state.ckpt")


def branch_of_evaluation(rank):
    fabric, penalty = new_fabric(find_unused_parameters=True), build("tv")
    model = fabric.setup(Net("group", aux="eval").double())
    y = model(x := batch(rank))
    with pytest.raises(RuntimeError, match=r"aux\.weight.*static_graph=True"):
        penalty(model, x, y)


def test_a_branch_that_ddp_thinks_unused_is_refused_under_fabric(two):
    two.run(branch_of_evaluation)
