"""Train with Lightning's Trainer and a Lipschitz penalty: one CPU, one GPU or many, the same script.

    python examples/lightning_train.py                                        # scikit-learn's digits
    python examples/lightning_train.py --penalty max --precision bf16-mixed
    python examples/lightning_train.py --accelerator cpu --devices 2          # two processes without a GPU

``--resume`` goes on from the last checkpoint under ``--output``, also with another number of processes.
"""

import argparse
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset, random_split

from torchlipreg import LipschitzPenalty
from torchlipreg.integrations.lightning import LipschitzCallback


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--epochs", type=int, default=10)
    add("--batch-size", type=int, default=64, help="of each process")
    add("--accumulate", type=int, default=1, help="batches per optimizer step")
    add("--lr", type=float, default=2e-3)
    add("--penalty", choices=["none", "max", "sum", "tv", "ptv"], default="tv")
    add("--weight", type=float, default=0.1)
    add("--radius", type=float, help="in the infinity norm, of pixels in [0, 1]; tv, ptv: default 8/255")
    add("--accelerator", default="auto")
    add("--devices", type=int, default=1, help="processes on this machine")
    add("--precision", default="32-true", help="as for Lightning: bf16-mixed, 16-mixed, ...")
    add("--output", type=Path, default=Path("out/lightning"))
    add("--resume", action="store_true")
    return parser.parse_args()


class Digits(L.LightningDataModule):
    """Images of 8 × 8 pixels in [0, 1]."""

    def __init__(self, batch_size):
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage):
        x, y = map(torch.tensor, load_digits(return_X_y=True))
        data = TensorDataset(x.float().view(-1, 1, 8, 8) / 16, y)
        self.train_set, self.test_set = random_split(data, [1500, 297], torch.Generator().manual_seed(0))

    def train_dataloader(self):
        # Shuffled by the number of the epoch, so that a resumed run sees the batches of the uninterrupted one.
        sampler = DistributedSampler(self.train_set, self.trainer.world_size, self.trainer.global_rank)
        return DataLoader(self.train_set, self.batch_size, sampler=sampler)

    def val_dataloader(self):
        return DataLoader(self.test_set, 297)


class Classifier(L.LightningModule):
    def __init__(self, penalty, lr):
        super().__init__()
        self.penalty, self.lr = penalty, lr
        self.layers = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(128, 10)),
        )

    def forward(self, x):
        return self.layers(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x)
        return cross_entropy(logits, y) + self.penalty(self, x, logits)  # <- the added term

    def validation_step(self, batch, batch_idx):
        x, y = batch
        hits = (self(x).argmax(1) == y).float()
        self.log("accuracy", hits.mean(), prog_bar=True, sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self.lr)


def main():
    args = parse_arguments()
    if (args.output / "last.ckpt").exists() and not args.resume:
        raise SystemExit(f"{args.output} holds a run: add --resume, or choose another --output")
    L.seed_everything(0)
    method, weight = ("tv", 0.0) if args.penalty == "none" else (args.penalty, args.weight)
    penalty = LipschitzPenalty(method, weight, radius=args.radius, bounds=(0, 1))
    saving = ModelCheckpoint(args.output, "{epoch}", save_top_k=-1, save_last=True)
    trainer = L.Trainer(
        accelerator=args.accelerator,
        devices=args.devices,
        strategy="ddp" if args.devices > 1 else "auto",
        precision=args.precision,
        accumulate_grad_batches=args.accumulate,
        max_epochs=args.epochs,
        log_every_n_steps=10,
        logger=CSVLogger(args.output),
        callbacks=[LipschitzCallback(penalty, prog_bar=True), saving],  # <- the added callback
    )
    last = args.output / "last.ckpt" if args.resume else None
    trainer.fit(Classifier(penalty, args.lr), Digits(args.batch_size), ckpt_path=last)
    if trainer.is_global_zero:
        values = {name: round(float(value), 4) for name, value in trainer.callback_metrics.items()}
        print(f"epoch {trainer.current_epoch}: {values}")


if __name__ == "__main__":
    main()
