"""CIFAR-10, as torchvision has it, or JPEG copies: CIFAR-10-jpeg/train.tar and test.tar, of CLASS/NAME.jpg."""

import functools
import tarfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.datasets import CIFAR10

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of the training images' channels
JPEG = "CIFAR-10 (JPEG copies)"


@functools.cache
def load(folder, train):
    """Return images in [0, 1], shape (N, 3, 32, 32), in one fixed random order, and labels.

    Raises:
        FileNotFoundError: If the folder holds neither form, and there is no network to download it from.
    """
    archive = Path(folder, "CIFAR-10-jpeg", "train.tar" if train else "test.tar")
    pixels, labels = _from_archive(archive) if archive.exists() else _from_torchvision(folder, train)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return pixels[order].permute(0, 3, 1, 2).float().contiguous() / 255, labels[order]


def name(folder):
    """Return what the images are called in a table."""
    return JPEG if Path(folder, "CIFAR-10-jpeg").exists() else "CIFAR-10"


def _from_archive(archive):
    pixels, classes = [], []
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.name.endswith(".jpg"):
                pixels.append(np.asarray(Image.open(tar.extractfile(member)).convert("RGB")))
                classes.append(Path(member.name).parent.name)
    number = {name: i for i, name in enumerate(sorted(set(classes)))}
    return torch.tensor(np.stack(pixels)), torch.tensor([number[name] for name in classes])


def _from_torchvision(folder, train):
    try:
        data = CIFAR10(folder, train=train, download=True)
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"CIFAR-10 is not in {str(folder)!r} and could not be downloaded ({error}). Name the folder that holds "
            "cifar-10-batches-py, or CIFAR-10-jpeg with train.tar and test.tar, by --data or TORCHLIPREG_DATA."
        ) from error
    return torch.tensor(data.data), torch.tensor(data.targets)
