"""Try an installed torchlipreg where only it is, and perhaps one extra: `python -I smoke.py NAME VERSION`.

Imports nothing of the repository, and prints what was tried with which versions. `.ci/dist.py` runs it.
"""

import importlib.metadata
import importlib.util
import subprocess
import sys
import tempfile
import warnings

OPTIONAL = ("accelerate", "lightning", "pytorch_lightning", "timm", "torchvision", "tqdm", "transformers")


def expect(fact, otherwise):
    if not fact:
        raise SystemExit(f"Smoke test: {otherwise}")


def net():
    import torch

    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))


def batches(count=4):
    import torch

    return [(torch.rand(8, 3, 4, 4), torch.randint(3, (8,))) for _ in range(count)]


def core():
    """A loop with each method, measures, schedules, and a resume, where only torch is."""
    found = [name for name in OPTIONAL if importlib.util.find_spec(name)]
    expect(not found, f"the environment of the core is not empty: {found}")
    import torch  # which warns of a missing NumPy

    warnings.simplefilter("error")
    import torchlipreg

    for method in ("max", "sum", "tv", "ptv"):
        model, penalty = net(), torchlipreg.LipschitzPenalty(method, weight=0.1)
        optimizer, schedule = torch.optim.SGD(model.parameters(), 0.1), torchlipreg.WeightWarmup(penalty, 3)
        for x, y in batches():
            out = model(x)
            loss = torch.nn.functional.cross_entropy(out, y) + penalty(model, x, out)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        expect(penalty.estimate > 0, f"{method} found no quotient")
        with tempfile.TemporaryFile() as file:
            torch.save(penalty.state_dict(), file)
            file.seek(0)
            torchlipreg.LipschitzPenalty(method).load_state_dict(torch.load(file, weights_only=True))
    x = batches(1)[0][0]
    norm = torchlipreg.operator_norm(model, x).max()
    expect(torchlipreg.lipschitz_lower_bound(model, x, radius=0.1) > 0, "no lower bound")
    expect(norm.isfinite(), f"the operator norm is {norm}")


def progress():
    import torchlipreg

    x = batches(1)[0][0]
    expect(torchlipreg.lipschitz_lower_bound(net(), x, radius=0.1, progress=True) > 0, "no lower bound")


def accelerate():
    import torch
    from accelerate import Accelerator

    from torchlipreg import LipschitzPenalty
    from torchlipreg.integrations.accelerate import log_values, prepare_penalty

    accelerator = Accelerator(cpu=True)
    model = net()
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), 0.1))
    penalty = prepare_penalty(accelerator, LipschitzPenalty("max", weight=0.1, num_pairs=8))
    for x, y in batches():
        out = model(x)
        value = penalty(model, x, out)
        accelerator.backward(torch.nn.functional.cross_entropy(out, y) + value)
        optimizer.step()
        optimizer.zero_grad()
    expect(log_values(penalty, value)["lipschitz"] > 0, "no quotient to log")
    with tempfile.TemporaryDirectory() as folder:
        accelerator.save_state(folder)
        before, penalty.weight = penalty.weight, 7.0
        accelerator.load_state(folder)
    expect(penalty.weight == before, "the penalty was not loaded")


def timm():
    import timm
    import torch
    from timm.task import ClassificationTask

    from torchlipreg import LipschitzPenalty
    from torchlipreg.integrations.timm import LipschitzTask

    model = timm.create_model("resnet10t", num_classes=3)
    task = LipschitzTask(ClassificationTask(model, torch.nn.CrossEntropyLoss()), LipschitzPenalty("tv", weight=0.1))
    result = task(torch.rand(4, 3, 32, 32), torch.randint(3, (4,)))
    result["loss"].backward()
    expect(result["lipschitz"] > 0, "no quotient")
    command = [sys.executable, "-I", "-m", "torchlipreg.integrations.timm", "--lip-help"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    expect("--lip-weight" in told, "the launcher has no flags")


def _lightning(package):
    import torch

    from torchlipreg import LipschitzPenalty
    from torchlipreg.integrations.lightning import LipschitzCallback

    warnings.simplefilter("ignore")  # Lightning's own, of loaders with few workers

    class Module(package.LightningModule):
        def __init__(self, penalty):
            super().__init__()
            self.net, self.penalty = net(), penalty

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, batch_idx):
            x, y = batch
            out = self(x)
            return torch.nn.functional.cross_entropy(out, y) + self.penalty(self, x, out)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    def trainer(penalty, epochs):
        options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
        return package.Trainer(max_epochs=epochs, callbacks=[LipschitzCallback(penalty)], **options)

    penalty, resumed = (LipschitzPenalty("max", weight=0.1, num_pairs=8) for _ in range(2))
    loader = torch.utils.data.DataLoader(batches(), batch_size=None)
    first = trainer(penalty, 1)
    first.fit(Module(penalty), loader)
    with tempfile.TemporaryDirectory() as folder:
        first.save_checkpoint(f"{folder}/last.ckpt")
        trainer(resumed, 2).fit(Module(resumed), loader, ckpt_path=f"{folder}/last.ckpt")
    expect(resumed.state_dict()["calls"] == 2 * len(loader), "the penalty did not resume")


def lightning():
    import lightning

    _lightning(lightning)


def pytorch_lightning():
    expect(importlib.util.find_spec("lightning") is None, "lightning is there as well")
    import pytorch_lightning

    _lightning(pytorch_lightning)


def transformers():
    import torch
    from transformers import ResNetConfig, ResNetForImageClassification, TrainingArguments

    from torchlipreg import LipschitzPenalty
    from torchlipreg.integrations.transformers import LipschitzTrainer

    config = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic", num_labels=3)
    rows = [{"pixel_values": torch.rand(3, 8, 8), "labels": i % 3} for i in range(8)]
    penalty = LipschitzPenalty("tv", weight=0.1, bounds=(0, 1))
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, max_steps=3, per_device_train_batch_size=4, report_to="none", use_cpu=True
        )
        model = ResNetForImageClassification(config)
        LipschitzTrainer(model=model, args=arguments, train_dataset=rows, penalty=penalty).train()
    expect(penalty.state_dict()["calls"] == 3, "the penalty was not called")


TRIALS = {
    "core": core,
    "progress": progress,
    "accelerate": accelerate,
    "timm": timm,
    "lightning": lightning,
    "pytorch-lightning": pytorch_lightning,
    "transformers": transformers,
}


def main(name, version):
    expect(sys.flags.isolated, "run it with python -I")
    TRIALS[name]()
    import torchlipreg

    expect(torchlipreg.__version__ == version, f"version {torchlipreg.__version__} is installed, not {version}")
    expect("site-packages" in torchlipreg.__file__, f"torchlipreg comes from {torchlipreg.__file__}")
    used = {package.partition(".")[0] for package in sys.modules} & {"torch", *OPTIONAL}
    numbers = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in sorted(used))
    print(f"{name}: torchlipreg {version} works with Python {sys.version.split()[0]}, {numbers}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
