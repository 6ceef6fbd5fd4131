"""What the CIFAR-10 experiment measures of each model."""

import io
from functools import partial

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as transforms

from examples.experiments.common.measures import GRADIENT_ATTACKS, Measure, accuracy, curves, judged

CORRUPTED = 2_000  # images
BATCH = 100  # of an attack: larger ones fall out of the cache of one core
NOISES = {"noise": (0.05, 0.1, 0.2)}
STRENGTHS = {"pgd linf": tuple(pixels / 255 for pixels in (1, 2, 4, 8, 12, 16))}
EPSILON = 8 / 255
BOUND = [("linf", EPSILON)]  # (norm, ε) at which AutoAttack judges first
MORE_BOUNDS = [("linf", 2 / 255), ("linf", 4 / 255), ("linf", 16 / 255), ("l2", 0.5)]


def blurred(x):
    return transforms.gaussian_blur(x, [7, 7], [1.0, 1.0])


def pale(x):
    return transforms.adjust_contrast(x, 0.3)


def coarse(x):
    small = transforms.resize(x, [round(0.65 * x.shape[2])] * 2, antialias=True)
    return transforms.resize(small, [*x.shape[2:]], interpolation=transforms.InterpolationMode.NEAREST)


def compressed(x):
    pixels = (255 * x).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return torch.from_numpy(np.stack([_through_jpeg(image) for image in pixels])).permute(0, 3, 1, 2).to(x) / 255


def _through_jpeg(image, quality=40):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "jpeg", quality=quality)
    return np.asarray(Image.open(file))


# Kinds of CIFAR-10-C (Hendrycks and Dietterich, arXiv:1903.12261), by torchvision and Pillow: of its greatest severity,
# the contrast, towards the grey mean, of the one before.
CORRUPTIONS = {"gaussian blur": blurred, "contrast": pale, "pixelate": coarse, "jpeg": compressed}


def corrupted(model, x, y, quick):
    x, y = x[:CORRUPTED], y[:CORRUPTED]
    found = {f"corrupted {name}": accuracy(model, corrupt(x), y) for name, corrupt in CORRUPTIONS.items()}
    return found | {"corrupted": sum(found.values()) / len(found)}


def measures(images, thoroughly):
    """Name -> :class:`Measure`; the gradient attacks on the first `images`, all of AutoAttack on `thoroughly` many."""
    by_gradient = partial(judged, images=images, batch=BATCH, attacks=GRADIENT_ATTACKS)
    by_all = partial(judged, images=thoroughly, batch=BATCH)
    return {
        "curves": Measure(partial(curves, strengths=NOISES, every={}), NOISES),
        "strengths": Measure(partial(curves, strengths=STRENGTHS, every={"pgd linf": 20}), (STRENGTHS, 20)),
        "corruptions": Measure(corrupted, (sorted(CORRUPTIONS), CORRUPTED)),
        "apgd": Measure(partial(by_gradient, bounds=BOUND), (BOUND, images, GRADIENT_ATTACKS)),
        "apgd-more": Measure(partial(by_gradient, bounds=MORE_BOUNDS), (MORE_BOUNDS, images, GRADIENT_ATTACKS)),
        "autoattack": Measure(partial(by_all, bounds=BOUND), (BOUND, thoroughly), costly=True),
        "autoattack-more": Measure(partial(by_all, bounds=MORE_BOUNDS), (MORE_BOUNDS, thoroughly), costly=True),
    }
