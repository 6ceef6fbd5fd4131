"""Train a timm model with a Lipschitz penalty under Hugging Face Accelerate: one CPU, one GPU or many, the same script.

    accelerate launch examples/accelerate_train.py                                  # scikit-learn's digits
    accelerate launch examples/accelerate_train.py --data IMAGES --model vit_tiny_patch16_224 --image-size 224
    ACCELERATE_USE_CPU=1 torchrun --nproc_per_node 2 examples/accelerate_train.py   # two processes without a GPU

``--resume`` goes on from the last checkpoint under ``--output``, also with another number of processes.
"""

import argparse
from pathlib import Path

import timm
import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import set_seed
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy, interpolate
from torch.utils.data import DataLoader, TensorDataset, random_split
from torchvision import datasets, transforms
from tqdm import tqdm

from torchlipreg import LipschitzPenalty
from torchlipreg.integrations.accelerate import log_values, prepare_penalty


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, help="folder with train/CLASS/*.png and val/CLASS/*.png; default: digits")
    add("--model", default="test_convnext", help="any timm model")
    add("--image-size", type=int, default=32)
    add("--epochs", type=int, default=5)
    add("--batch-size", type=int, default=64, help="of each process")
    add("--lr", type=float, default=2e-3)
    add("--accumulate", type=int, default=1, help="batches per optimizer step")
    add("--mixed-precision", help="no, fp16 or bf16; default: as `accelerate config` says")
    add("--penalty", choices=["none", "max", "sum", "tv", "ptv"], default="tv")
    add("--weight", type=float, default=0.1)
    add("--radius", type=float, help="in the infinity norm, of pixels in [0, 1]; tv, ptv: default 8/255")
    add("--tracker", help="tensorboard, wandb, ...")
    add("--output", type=Path, default=Path("out/accelerate"))
    add("--resume", action="store_true")
    return parser.parse_args()


def load_data(args):
    """Return training set, test set, number of classes and of channels; pixels are in [0, 1]."""
    if args.data is None:
        x, y = map(torch.tensor, load_digits(return_X_y=True))
        x = interpolate(x.float().view(-1, 1, 8, 8) / 16, args.image_size)
        return *random_split(TensorDataset(x, y), [1500, 297], torch.Generator().manual_seed(0)), 10, 1
    resize = transforms.Compose([transforms.Resize([args.image_size] * 2), transforms.ToTensor()])
    train, test = (datasets.ImageFolder(args.data / split, resize) for split in ("train", "val"))
    return train, test, len(train.classes), 3


def save(accelerator, folder):
    accelerator.save_state(folder.with_name("partial"))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:  # renamed when complete: a killed run leaves no half checkpoint to resume from
        folder.with_name("partial").rename(folder)


@torch.no_grad()
def accuracy(accelerator, model, loader):
    model.eval()
    hits = [accelerator.gather_for_metrics(model(x).argmax(1) == y) for x, y in loader]
    return torch.cat(hits).float().mean().item()


def main():
    args = parse_arguments()
    set_seed(0)
    accelerator = Accelerator(
        mixed_precision=args.mixed_precision,
        gradient_accumulation_steps=args.accumulate,
        log_with=args.tracker,
        project_dir=args.output,
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True),  # else a resumed run shuffles anew
    )
    train_set, test_set, classes, channels = load_data(args)
    model = timm.create_model(args.model, num_classes=classes, in_chans=channels)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    loader, test_loader = DataLoader(train_set, args.batch_size, shuffle=True), DataLoader(test_set, args.batch_size)
    model, optimizer, loader, test_loader = accelerator.prepare(model, optimizer, loader, test_loader)

    method, weight = ("tv", 0.0) if args.penalty == "none" else (args.penalty, args.weight)
    penalty = LipschitzPenalty(method, weight, radius=args.radius, input_norm=float("inf"), bounds=(0, 1))
    penalty = prepare_penalty(accelerator, penalty)
    accelerator.init_trackers("lipschitz")
    start = max((int(f.name.removeprefix("epoch-")) for f in args.output.glob("epoch-*")), default=0)
    if start and not args.resume:
        raise SystemExit(f"{args.output} holds a run: add --resume, or choose another --output")
    if start:
        accelerator.load_state(args.output / f"epoch-{start}")
    for epoch in range(start, args.epochs):
        model.train()
        loader.set_epoch(epoch)
        progress = tqdm(loader, f"epoch {epoch + 1}", disable=not accelerator.is_main_process)
        for step, (x, y) in enumerate(progress):
            with accelerator.accumulate(model):
                logits = model(x)
                term = penalty(model, x, logits)  # <- the added line
                accelerator.backward(cross_entropy(logits, y) + term)
                optimizer.step()
                optimizer.zero_grad()
            if step % 10 == 0:
                progress.set_postfix(values := log_values(penalty, term))
                accelerator.log(values, step=epoch * len(loader) + step)
        correct = accuracy(accelerator, model, test_loader)
        accelerator.log({"accuracy": correct}, step=(epoch + 1) * len(loader))
        accelerator.print(f"epoch {epoch + 1}: accuracy {correct:.3f}, {log_values(penalty)}")
        save(accelerator, args.output / f"epoch-{epoch + 1}")
    accelerator.end_training()


if __name__ == "__main__":
    main()
