"""Train a timm model with a Lipschitz penalty under Hugging Face Accelerate: one CPU, one GPU or many, the same script.

    accelerate launch examples/accelerate_train.py                                    # scikit-learn's digits
    accelerate launch examples/accelerate_train.py --data IMAGES --model resnet18     # IMAGES/{train,val}/CLASS/*.png
    ACCELERATE_USE_CPU=1 torchrun --nproc_per_node 2 examples/accelerate_train.py     # two processes without a GPU

``--resume`` goes on from the last checkpoint under ``--output``, also with another number of processes.
"""

import argparse
from pathlib import Path

import timm
import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import set_seed
from torch.nn.functional import cross_entropy, interpolate
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

from torchlipreg import LipschitzPenalty
from torchlipreg.integrations.accelerate import log_values, prepare_penalty


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, help="folder with train/ and val/, a folder of images for each class; default: digits")
    add("--model", default="test_resnet", help="any timm model")
    add("--image-size", type=int, default=32)
    add("--epochs", type=int, default=5)
    add("--batch-size", type=int, default=64, help="of each process")
    add("--lr", type=float, default=2e-3)
    add("--accumulate", type=int, default=1, help="batches per optimizer step")
    add("--mixed-precision", choices=["no", "fp16", "bf16"], help="default: as `accelerate config` says")
    add("--penalty", choices=["none", "max", "sum", "tv", "ptv"], default="tv")
    add("--penalty-weight", type=float, default=1e-3)
    add("--radius", type=float, help="in pixel units, which are in [0, 1]; default: the method's")
    add("--norm", type=float, default=float("inf"), help="of the perturbations to be withstood: 1, 2 or inf")
    add("--tracker", help="tensorboard, wandb, ...")
    add("--output", type=Path, default=Path("out/accelerate"))
    add("--resume", action="store_true")
    add("--seed", type=int, default=0)
    return parser.parse_args()


def load_data(args):
    """Return training set, test set, number of classes and of channels; images are in [0, 1]."""
    if args.data is None:
        from sklearn.datasets import load_digits

        x, y = load_digits(return_X_y=True)
        x = torch.tensor(x, dtype=torch.float32).view(-1, 1, 8, 8) / 16
        data = TensorDataset(interpolate(x, args.image_size), torch.tensor(y))
        return (*torch.utils.data.random_split(data, [1500, 297], torch.Generator().manual_seed(0)), 10, 1)
    from torchvision import datasets, transforms

    resize = transforms.Compose([transforms.Resize([args.image_size] * 2), transforms.ToTensor()])
    train, test = (datasets.ImageFolder(args.data / split, resize) for split in ("train", "val"))
    return train, test, len(train.classes), 3


def save(accelerator, folder):
    """Save beside, then rename: a killed run leaves no half checkpoint to resume from."""
    partial = folder.with_name("partial")
    accelerator.save_state(partial)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        partial.rename(folder)


@torch.no_grad()
def accuracy(accelerator, model, loader):
    model.eval()
    hits = [accelerator.gather_for_metrics(model(x).argmax(1) == y) for x, y in loader]
    return torch.cat(hits).float().mean().item()


def main():
    args = parse_arguments()
    set_seed(args.seed)
    accelerator = Accelerator(
        mixed_precision=args.mixed_precision,
        gradient_accumulation_steps=args.accumulate,
        log_with=args.tracker,
        project_dir=args.output,
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True),  # else a resumed run shuffles anew
    )
    train_set, test_set, classes, channels = load_data(args)
    model = timm.create_model(args.model, num_classes=classes, in_chans=channels)
    model, optimizer, train_loader, test_loader = accelerator.prepare(
        model,
        torch.optim.AdamW(model.parameters(), lr=args.lr),
        DataLoader(train_set, args.batch_size, shuffle=True),
        DataLoader(test_set, args.batch_size),
    )
    penalty = LipschitzPenalty(
        "tv" if args.penalty == "none" else args.penalty,
        0.0 if args.penalty == "none" else args.penalty_weight,
        radius=args.radius,
        input_norm=args.norm,
        bounds=(0, 1),
    )
    penalty = prepare_penalty(accelerator, penalty)
    if args.tracker:
        accelerator.init_trackers("lipschitz")

    done = [int(folder.name.removeprefix("epoch-")) for folder in args.output.glob("epoch-*")] if args.resume else []
    if done:
        accelerator.load_state(args.output / f"epoch-{max(done)}")
    for epoch in range(max(done, default=0), args.epochs):
        model.train()
        train_loader.set_epoch(epoch)
        progress = tqdm(train_loader, f"epoch {epoch + 1}", disable=not accelerator.is_main_process)
        for step, (x, y) in enumerate(progress):
            with accelerator.accumulate(model):
                logits = model(x)
                term = penalty(model, x, logits)
                accelerator.backward(cross_entropy(logits, y) + term)
                optimizer.step()
                optimizer.zero_grad()
            if step % 10 == 0:
                values = log_values(penalty, term)
                progress.set_postfix(lipschitz=f"{values['lipschitz']:.3g}", penalty=f"{values['penalty']:.3g}")
                accelerator.log(values, step=epoch * len(train_loader) + step)
        correct = accuracy(accelerator, model, test_loader)
        accelerator.log({"accuracy": correct}, step=(epoch + 1) * len(train_loader))
        accelerator.print(
            f"epoch {epoch + 1}: accuracy {correct:.3f}, Lipschitz estimate {float(penalty.estimate):.3g}"
        )
        save(accelerator, args.output / f"epoch-{epoch + 1}")
    accelerator.end_training()


if __name__ == "__main__":
    main()
