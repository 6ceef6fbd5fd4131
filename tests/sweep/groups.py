"""The groups of samples: names, and for each name a list of ways to build it, the smallest inputs first."""

from sweep import torch_modules, vision
from sweep import transformers_models as transformers

GROUPS = {
    "torch": torch_modules,
    "timm": vision.Timm,
    "torchvision": vision.Torchvision,
    "transformers, images": transformers.IMAGES,
    "transformers, audio": transformers.AUDIO,
    "transformers, text": transformers.TEXT,
}
