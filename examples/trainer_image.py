"""Train an image classifier with a Lipschitz penalty through transformers' Trainer: one CPU, one GPU or many.

    python examples/trainer_image.py                                                   # scikit-learn's digits
    python examples/trainer_image.py --data IMAGES --model_name_or_path microsoft/resnet-18 --image_size 224
    ACCELERATE_USE_CPU=1 torchrun --nproc_per_node 2 examples/trainer_image.py         # two processes without a GPU

Arguments are those of transformers' TrainingArguments and the few below. A run that was killed goes on from the last
checkpoint under ``--output_dir``, also with another number of processes.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch.nn.functional import interpolate
from torch.utils.data import Dataset
from torchvision import datasets, transforms
from transformers import AutoModelForImageClassification, HfArgumentParser, ResNetConfig, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from torchlipreg import LipschitzPenalty
from torchlipreg.integrations.transformers import LipschitzTrainer


@dataclass
class ScriptArguments:
    data: str | None = field(default=None, metadata={"help": "folder with train/CLASS/* and val/CLASS/*; else digits"})
    model_name_or_path: str | None = field(default=None, metadata={"help": "else a tiny ResNet that starts anew"})
    image_size: int = 16
    penalty: str = field(default="tv", metadata={"help": "none, max, sum, tv or ptv"})
    weight: float = 0.1
    radius: float | None = field(default=None, metadata={"help": "of pixels in [0, 1]; tv, ptv: default 8/255"})


class Images(Dataset):
    """Gives what the model's forward takes, by name: pixels in [0, 1], and the label."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        pixels, label = self.rows[i]
        return {"pixel_values": pixels, "labels": int(label)}


def load_data(args):
    """Return training set, test set, number of classes and of channels."""
    if args.data is None:
        x, y = map(torch.tensor, load_digits(return_X_y=True))
        x = interpolate(x.float().view(-1, 1, 8, 8) / 16, args.image_size)
        rows = list(zip(x, y, strict=True))
        return Images(rows[:1500]), Images(rows[1500:]), 10, 1
    resize = transforms.Compose([transforms.Resize([args.image_size] * 2), transforms.ToTensor()])
    train, test = (datasets.ImageFolder(Path(args.data, split), resize) for split in ("train", "val"))
    return Images(train), Images(test), len(train.classes), 3


def create_model(args, classes, channels):
    if args.model_name_or_path is not None:
        return AutoModelForImageClassification.from_pretrained(
            args.model_name_or_path, num_labels=classes, ignore_mismatched_sizes=True
        )
    config = ResNetConfig(
        num_channels=channels, num_labels=classes, embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1],
        layer_type="basic",
    )  # fmt: skip
    return AutoModelForImageClassification.from_config(config)


def main():
    parser = HfArgumentParser((ScriptArguments, TrainingArguments), description=__doc__)
    parser.set_defaults(
        output_dir="out/trainer_image", num_train_epochs=5, per_device_train_batch_size=64, learning_rate=2e-3,
        logging_steps=10, eval_strategy="epoch", save_strategy="epoch", report_to="none",
    )  # fmt: skip
    args, training_args = parser.parse_args_into_dataclasses()
    set_seed(training_args.seed)
    train_set, test_set, classes, channels = load_data(args)

    method, weight = ("tv", 0.0) if args.penalty == "none" else (args.penalty, args.weight)
    penalty = LipschitzPenalty(method, weight, radius=args.radius, bounds=(0, 1))
    trainer = LipschitzTrainer(
        model=create_model(args, classes, channels),
        args=training_args,
        train_dataset=train_set,
        eval_dataset=test_set,
        compute_metrics=lambda p: {"accuracy": float((p.predictions.argmax(1) == p.label_ids).mean())},
        penalty=penalty,  # <- the added argument
    )
    last = get_last_checkpoint(training_args.output_dir) if Path(training_args.output_dir).is_dir() else None
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint or last)
    trainer.save_model()
    trainer.log_metrics("eval", {**trainer.evaluate(), "lipschitz": penalty.estimate.item()})


if __name__ == "__main__":
    main()
