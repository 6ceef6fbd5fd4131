"""Lightning's Trainer, of either package: the same numbers as a hand-written loop; checkpoints, logs, warnings."""

from __future__ import annotations

import copy
import importlib
import pickle
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset
from zoo import Seen

pytest.importorskip("lightning")
import lightning.pytorch

from torchlipreg import DiscrepancyWeight, LipschitzPenalty, RadiusDecay, WeightWarmup
from torchlipreg.integrations.lightning import LipschitzCallback

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*is smaller than the logging interval"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:.*but not used"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed from"),
]

PENALTIES = {
    "max": {"radius": 0.1, "num_pairs": 6},
    "tv": {"radius": 0.1},
}
EPOCHS, BATCHES, BATCH = 3, 4, 8


def other_package():
    return pytest.importorskip("pytorch_lightning")


@pytest.fixture(params=["lightning.pytorch", "pytorch_lightning"])
def package(request):
    return pytest.importorskip(request.param)


def build(method="max", weight=0.5, **options):
    return LipschitzPenalty(method, weight, **{"input_norm": 2, **PENALTIES[method], **options})


def data(seed=0):
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(BATCHES * BATCH, 6, generator=rng, dtype=torch.float64)
    return TensorDataset(x, torch.randint(3, (len(x),), generator=rng))


def net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Dropout(0.2), nn.Linear(16, 3)).double()


def new_optimizer(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def module_of(package, penalty, *, manual=False, adds=True, calls=True):
    """A LightningModule: the net, with one added line."""

    class Module(package.LightningModule):
        def __init__(self):
            super().__init__()
            self.net, self.automatic_optimization, self.moved = net(), not manual, False

        def forward(self, x):
            return self.net(x)

        def shared_step(self, batch):
            x, y = batch
            out = self(x)
            term = penalty(self, x, out) if calls else 0  # <- the line
            return cross_entropy(out, y) + (term if adds else 0), (out.argmax(1) == y).double().mean()

        def training_step(self, batch, batch_idx):
            torch.manual_seed(100 * self.current_epoch + batch_idx)  # dropout that a resumed run repeats
            x, y = data()[BATCH * batch_idx : BATCH * (batch_idx + 1)]  # Lightning resumes at a loader's first batch
            loss, accuracy = self.shared_step((x.to(self.net[0].weight.dtype), y))
            self.log("accuracy", accuracy, on_step=False, on_epoch=True)
            if not manual:
                return loss
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            return None

        def validation_step(self, batch, batch_idx):
            before = penalty.pairs
            loss, accuracy = self.shared_step(batch)
            self.log("val_accuracy", accuracy)
            assert loss.isfinite()
            self.moved |= penalty.pairs is not before and before is not None

        def configure_optimizers(self):
            return new_optimizer(self.parameters())

    return Module()


def loaders(module, validation=True):
    train = DataLoader(data(), BATCH)
    return (module, train, DataLoader(data(1), 2 * BATCH)) if validation else (module, train)


def trainer_of(package, folder, *callbacks, **options):
    return package.Trainer(
        **{
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": EPOCHS,
            "logger": False,
            "callbacks": list(callbacks),
            "enable_checkpointing": any(type(c).__name__ == "ModelCheckpoint" for c in callbacks),
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": folder,
            **options,
        }
    )


def by_hand(penalty, accumulate=1, schedules=(), after_step=(), epochs=EPOCHS):
    """The loop that the Trainer replaces."""
    model = net()
    optimizer = new_optimizer(model.parameters())
    for epoch in range(epochs):
        for i, (x, y) in enumerate(DataLoader(data(), BATCH)):
            torch.manual_seed(100 * epoch + i)
            out = model(x)
            loss = cross_entropy(out, y) + penalty(model, x, out)
            (loss / accumulate).backward()
            if (i + 1) % accumulate == 0:
                optimizer.step()
                optimizer.zero_grad()
                for schedule in after_step:
                    schedule.step()
        for schedule in schedules:
            schedule.step()
    return model


def assert_same(model, penalty, expected, expected_penalty):
    for name, value in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    assert torch.equal(penalty.pairs.x_prime, expected_penalty.pairs.x_prime)
    assert (penalty.weight, penalty.radius) == (expected_penalty.weight, expected_penalty.radius)


@pytest.mark.parametrize(("manual", "accumulate"), [(False, 1), (False, 2), (True, 1)])
@pytest.mark.parametrize("method", PENALTIES)
def test_it_trains_as_a_loop_does(package, tmp_path, method, manual, accumulate):
    """Sanity check and validation call the penalty too: it returns a value, and nothing moves."""
    penalty, reference = build(method), build(method)
    module = module_of(package, penalty, manual=manual)
    trainer = trainer_of(package, tmp_path, LipschitzCallback(penalty), accumulate_grad_batches=accumulate)
    trainer.fit(*loaders(module))
    expected = by_hand(reference, accumulate)
    assert not module.moved
    assert penalty.was_added
    # A forward of validation lies between: the loop's last call is not the penalty's.
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(module.net.state_dict()[name], value, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(penalty.pairs.x_prime, reference.pairs.x_prime, rtol=1e-12, atol=1e-14)


def test_schedules(package, tmp_path):
    penalty, reference = build(), build()
    schedules = [RadiusDecay(penalty, 0.5), WeightWarmup(penalty, 5)]
    trainer = trainer_of(package, tmp_path, LipschitzCallback(penalty, schedules=schedules), accumulate_grad_batches=2)
    module = module_of(package, penalty)
    trainer.fit(*loaders(module, validation=False))
    expected = by_hand(reference, 2, [RadiusDecay(reference, 0.5)], [WeightWarmup(reference, 5)])
    assert_same(module.net, penalty, expected, reference)
    assert penalty.radius == 0.1 * 0.5**EPOCHS
    assert penalty.weight == 0.5


def test_a_schedule_of_the_accuracy(package, tmp_path):
    penalty, seen = build(), []

    class Schedule(DiscrepancyWeight):
        def step(self, accuracy):
            seen.append(accuracy)
            super().step(accuracy)

    callback = LipschitzCallback(penalty, schedules=[Schedule(penalty, 0.2, 0.01)], accuracy="val_accuracy")
    module, known = module_of(package, penalty), []
    module.on_validation_epoch_end = lambda: known.append(float(module.trainer.callback_metrics["val_accuracy"]))
    trainer_of(package, tmp_path, callback, num_sanity_val_steps=0).fit(*loaders(module))
    assert seen == known
    assert len(seen) == EPOCHS


def test_the_accuracy_must_be_logged(package, tmp_path):
    penalty = build()
    callback = LipschitzCallback(penalty, schedules=[DiscrepancyWeight(penalty, 0.2, 0.01)], accuracy="nothing")
    for validation, names in ((True, "val_accuracy"), (False, "accuracy")):
        with pytest.raises(ValueError, match=rf"`accuracy`.*got 'nothing', and it logs .*{names}"):
            one_epoch(package, tmp_path, module_of(package, penalty), callback, validation=validation)


def test_a_validation_every_other_epoch_is_waited_for(package, tmp_path):
    penalty = build()
    schedule = DiscrepancyWeight(penalty, 0.0, 0.01)
    callback = LipschitzCallback(penalty, schedules=[schedule], accuracy="val_accuracy")
    trainer = trainer_of(package, tmp_path, callback, check_val_every_n_epoch=2, num_sanity_val_steps=0)
    trainer.fit(*loaders(module_of(package, penalty)))
    assert penalty.weight == pytest.approx(0.5 + 0.01 * (EPOCHS - 1))


SAVINGS = {
    "epoch": ({"every_n_epochs": 1}, False),
    "validation": ({"every_n_epochs": 1, "save_on_train_epoch_end": False}, True),
    "last batch": ({"every_n_train_steps": BATCHES}, False),
    "within an epoch": ({"every_n_train_steps": BATCHES + 2}, True),
}


def run(package, folder, saving, resume=None, callback=True, validation=True):
    penalty = build()
    schedules = [RadiusDecay(penalty, 0.7), WeightWarmup(penalty, 7)]
    if saving != SAVINGS["last batch"][0]:  # at which the epoch's accuracy is not known
        schedules.append(DiscrepancyWeight(penalty, 0.4, 0.01))
    ours = LipschitzCallback(penalty, schedules=schedules, accuracy="val_accuracy" if validation else "accuracy")
    checkpoint = importlib.import_module(f"{package.__name__}.callbacks").ModelCheckpoint
    callbacks = [ours] if callback else []
    callbacks.append(checkpoint(folder / ("resumed" if resume else "whole"), "{epoch}-{step}", save_top_k=-1, **saving))
    module = module_of(package, penalty)
    trainer = trainer_of(package, folder, *callbacks)
    trainer.fit(*loaders(module, validation), ckpt_path=resume)
    return module.net, penalty


@pytest.mark.parametrize("saving", SAVINGS)
def test_resumed_equals_uninterrupted(package, tmp_path, saving):
    options, validation = SAVINGS[saving]
    whole = run(package, tmp_path, options, validation=validation)
    step = BATCHES + 2 if saving == "within an epoch" else BATCHES
    (path,) = tmp_path.glob(f"whole/*-step={step}.ckpt")
    resumed = run(package, tmp_path, options, path, validation=validation)
    assert_same(*resumed, *whole)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize(("epoch", "latest"), [(1, "without one"), (2, "with the last one, 0")])
def test_a_validation_that_a_resumed_run_leaves_out_is_told(package, tmp_path, epoch, latest):
    """Saved at an epoch's last step, before its validation."""

    def fit(resume=None):
        penalty = build()
        schedule = DiscrepancyWeight(penalty, 0.4, 0.01)
        ours = LipschitzCallback(penalty, schedules=[schedule], accuracy="val_accuracy")
        checkpoint = importlib.import_module(f"{package.__name__}.callbacks").ModelCheckpoint
        saving = checkpoint(tmp_path / "saved", "{step}", save_top_k=-1, every_n_train_steps=BATCHES)
        saving = [] if resume else [saving]
        trainer = trainer_of(package, tmp_path, ours, *saving, max_epochs=3, num_sanity_val_steps=0)
        trainer.fit(*loaders(module_of(package, penalty), True), ckpt_path=resume)

    fit()
    (path,) = (tmp_path / "saved").glob(f"step={epoch * BATCHES}.ckpt")
    with pytest.warns(UserWarning, match=f"last step of an epoch, .* goes on {latest}"):
        fit(path)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_without_the_callback_a_resumed_run_differs(package, tmp_path):
    options, _ = SAVINGS["epoch"]
    whole, _ = run(package, tmp_path, options, validation=False)
    (path,) = tmp_path.glob(f"whole/*-step={BATCHES}.ckpt")
    resumed, _ = run(package, tmp_path, options, path, callback=False, validation=False)
    assert not torch.equal(whole[0].weight, resumed[0].weight)


def test_checkpoints_are_plain_and_of_either_package(tmp_path):
    other = other_package()
    options, _ = SAVINGS["epoch"]
    whole = run(lightning.pytorch, tmp_path, options, validation=False)
    (path,) = tmp_path.glob(f"whole/*-step={BATCHES}.ckpt")
    torch.load(path, weights_only=True)
    assert_same(*run(other, tmp_path, options, path, validation=False), *whole)


def one_epoch(package, folder, module, *callbacks, validation=False, **options):
    trainer = trainer_of(package, folder, *callbacks, max_epochs=1, **options)
    trainer.fit(*loaders(module, validation))
    return trainer


def test_a_checkpoint_without_the_penalty(package, tmp_path):
    module = module_of(package, build())
    one_epoch(package, tmp_path, module).save_checkpoint(tmp_path / "old.ckpt")
    penalty = build()
    trainer = trainer_of(package, tmp_path, LipschitzCallback(penalty), max_epochs=2)
    with pytest.warns(UserWarning, match="no penalty in the checkpoint: its pairs start anew"):
        trainer.fit(*loaders(module_of(package, penalty), False), ckpt_path=tmp_path / "old.ckpt")
    assert penalty.pairs is not None


def test_a_checkpoint_of_another_kind(tmp_path):
    penalty = build()
    callback = LipschitzCallback(penalty, schedules=[RadiusDecay(penalty)])
    state = callback.state_dict()
    with pytest.raises(ValueError, match="method='tv', but got 'max'"):
        LipschitzCallback(tv := build("tv"), schedules=[RadiusDecay(tv)]).load_state_dict(state)
    with pytest.raises(ValueError, match=r"`schedules` to hold 1 schedules.*got 0"):
        LipschitzCallback(penalty).load_state_dict(state)


def recorder(package):
    base = importlib.import_module(f"{package.__name__}.loggers").Logger

    class Recorder(base):
        name, version = "recorder", 0

        def __init__(self):
            super().__init__()
            self.lines = []

        def log_metrics(self, metrics, step=None):
            self.lines.append((step, metrics))

        def log_hyperparams(self, *args, **kwargs):
            pass

    return Recorder()


@pytest.mark.parametrize(("prefix", "interval"), [("", 1), ("second_", 1), ("", 2)])
def test_it_logs_at_the_trainers_steps(package, tmp_path, prefix, interval):
    penalty, logger = build("tv", interval=interval), recorder(package)
    seen = []
    module = module_of(package, penalty)
    module.on_train_batch_end = lambda *_: seen.append((penalty.value.item(), penalty.estimate.item()))
    options = {"logger": logger, "log_every_n_steps": 3, "max_epochs": 4}
    trainer_of(package, tmp_path, LipschitzCallback(penalty, prefix=prefix), **options).fit(*loaders(module, False))
    lines = [(step, line) for step, line in logger.lines if f"{prefix}penalty" in line]
    assert [step for step, _ in lines] == [2, 5, 8, 11, 14]
    for step, line in lines:
        assert line[f"{prefix}penalty"] == pytest.approx(
            seen[step][0] / interval, rel=1e-6
        )  # what a step gets in the mean
        assert line[f"{prefix}lipschitz"] == pytest.approx(seen[step][1], rel=1e-6)
        assert line[f"{prefix}lipschitz_weight"] == 0.5
        assert line[f"{prefix}lipschitz_radius"] == pytest.approx(0.1)
    assert interval > 1 or lines[-1][1][f"{prefix}penalty_share"] > 0


def test_it_logs_nothing_added_as_nothing(package, tmp_path):
    penalty, logger = build("tv"), recorder(package)
    module = module_of(package, penalty)

    def switch_off(*_):
        penalty.weight = 0.0

    module.on_train_batch_start = lambda batch, i: switch_off() if i else None
    callback, options = LipschitzCallback(penalty), {"logger": logger, "log_every_n_steps": 1, "max_epochs": 1}
    trainer_of(package, tmp_path, callback, **options).fit(*loaders(module, False))
    first, *others = [line["penalty"] for _, line in logger.lines if "penalty" in line]
    assert first > 0
    assert others
    assert not any(others)


def test_two_penalties(package, tmp_path):
    first, second = build(), build("tv")
    module = module_of(package, lambda *args: first(*args) + second(*args))
    callbacks = LipschitzCallback(first), LipschitzCallback(second, prefix="second_")
    trainer = one_epoch(package, tmp_path, module, *callbacks)
    trainer.save_checkpoint(tmp_path / "both.ckpt")
    saved = torch.load(tmp_path / "both.ckpt", weights_only=True)["callbacks"]
    assert [state["penalty"]["method"] for state in saved.values()] == ["max", "tv"]


@pytest.mark.parametrize(
    ("calls", "found"), [(False, "was never called"), (True, "was called, but no backward came through it")]
)
def test_a_penalty_that_is_not_added(package, tmp_path, calls, found):
    penalty = build()
    module = module_of(package, penalty, calls=calls, adds=False)
    with pytest.warns(UserWarning, match=f"{found}.*`training_step`"):
        one_epoch(package, tmp_path, module, LipschitzCallback(penalty))


def test_a_weight_of_zero_is_no_reason_to_warn(package, tmp_path):
    penalty = build(weight=0.0)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "The penalty of")
        one_epoch(package, tmp_path, module_of(package, penalty), LipschitzCallback(penalty))


def test_under_autocast_it_computes_in_float32(package, tmp_path):
    penalty, reference, seen = build("tv", radius=1e-3), build("tv", radius=1e-3), Seen()
    module = module_of(package, penalty).float()
    module.net[1], module.net[3] = nn.Identity(), nn.Identity()
    exact, x = copy.deepcopy(module.net), data()[:BATCH][0].float()
    module.net[0].register_forward_hook(lambda m, args, y: seen.append(y.dtype))
    one_epoch(package, tmp_path, module, LipschitzCallback(penalty), precision="bf16-mixed", limit_train_batches=1)
    reference(exact, x)
    assert seen[0] == torch.bfloat16
    assert set(seen[1:]) == {torch.float32}
    torch.testing.assert_close(penalty.estimate, reference.estimate, rtol=1e-4, atol=0)


def test_it_travels_to_other_processes_with_its_penalty():
    """As ``ddp_spawn`` sends it: the callback's penalty stays the module's, and has been called."""
    penalty = build()
    penalty(model := net(), data()[:BATCH][0]).backward()
    callback = LipschitzCallback(penalty, schedules=[RadiusDecay(penalty)])
    callback, again = pickle.loads(pickle.dumps((callback, penalty)))
    assert callback.penalty is callback.schedules[0].penalty is again
    assert again(model, data()[:BATCH][0]) == penalty(model, data()[:BATCH][0])


SUBCLASSES = """
import sys
{imports}
from torchlipreg.integrations.lightning import LipschitzCallback
loaded = [name for name in ("lightning.pytorch", "pytorch_lightning") if name in sys.modules]
print(loaded == {loaded}, all(issubclass(LipschitzCallback, sys.modules[name].Callback) for name in loaded))
"""


@pytest.mark.distributed  # starts processes
@pytest.mark.parametrize(
    ("imports", "loaded"),
    [
        ("import pytorch_lightning", ["pytorch_lightning"]),
        ("sys.modules['lightning'] = None", ["pytorch_lightning"]),
    ],
)
def test_it_is_a_callback_of_what_is_imported(imports, loaded):
    other_package()
    script = SUBCLASSES.format(imports=imports, loaded=loaded)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout == "True True\n", done.stderr


@pytest.mark.distributed
def test_without_lightning_the_error_says_what_to_install():
    script = "import sys; sys.modules['lightning'] = sys.modules['pytorch_lightning'] = None\n"
    script += "import torchlipreg.integrations.lightning"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "ImportError: torchlipreg.integrations.lightning needs Lightning: pip install" in done.stderr


def test_bad_arguments():
    penalty = build()
    with pytest.raises(TypeError, match="`penalty` to be a LipschitzPenalty, but got Linear"):
        LipschitzCallback(nn.Linear(1, 1))
    with pytest.raises(TypeError, match=r"`schedules`.*object, which has no step"):
        LipschitzCallback(penalty, schedules=[object()])
    with pytest.raises(ValueError, match=r"`schedules`.*another penalty's"):
        LipschitzCallback(penalty, schedules=[RadiusDecay(build())])
    with pytest.raises(ValueError, match="`accuracy`"):
        LipschitzCallback(penalty, schedules=[DiscrepancyWeight(penalty, 0.5, 0.1)])
    with pytest.raises(TypeError, match="`prefix`"):
        LipschitzCallback(penalty, prefix=None)


@pytest.mark.parametrize("method", PENALTIES)
def test_what_a_forward_logs_is_the_tasks_alone(package, tmp_path, method):
    """As it was, the penalty's own forwards entered the mean of an epoch, and the last of them a step's value."""

    def logged(weight):
        penalty = build(method, weight)

        class Logging(package.LightningModule):
            def __init__(self):
                super().__init__()
                self.net = net()

            def forward(self, x):
                y = self.net(x)
                self.log("size", y.abs().mean(), on_step=True, on_epoch=True)
                self.log_dict({"largest": y.abs().max()}, on_step=False, on_epoch=True)
                return y

            def training_step(self, batch, batch_idx):
                torch.manual_seed(batch_idx)
                x, y = batch
                out = self(x)
                return cross_entropy(out, y) + penalty(self, x, out)

            def configure_optimizers(self):
                return new_optimizer(self.parameters())

        trainer, module = trainer_of(package, tmp_path, LipschitzCallback(penalty)), Logging()
        trainer.fit(module, DataLoader(data(), BATCH))
        assert "log" not in vars(module)
        return [float(trainer.callback_metrics[name]) for name in ("size_step", "size_epoch", "largest")]

    assert logged(1e-12) == pytest.approx(logged(0.0), rel=1e-6)
