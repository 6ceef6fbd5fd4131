"""Small networks for images of 32 × 32 pixels in [0, 1], which they normalise themselves, so that ε counts pixels."""

import timm
import torch
from torch import nn

from examples.experiments.common import cifar


class Normalise(nn.Module):
    def __init__(self):
        super().__init__()
        for name, values in (("mean", cifar.MEAN), ("std", cifar.STD)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1))

    def forward(self, x):
        return (x - self.mean) / self.std


def conv(norm=None, width=24):
    channels, layers = 3, []
    for outputs, stride in ((width, 2), (2 * width, 2), (4 * width, 1), (4 * width, 2)):
        layers += [nn.Conv2d(channels, outputs, 3, stride, padding=1), *([norm(outputs)] if norm else []), nn.ReLU()]
        channels = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * channels, 10))


def resnet(width=16):
    """timm's ResNet with one block a stage, a stem of small convolutions and no pooling in front."""
    net = timm.create_model(
        "resnet18",
        num_classes=10,
        layers=[1, 1, 1, 1],
        channels=(width, 2 * width, 4 * width, 8 * width),
        stem_type="deep",
        stem_width=width // 2,
    )
    net.maxpool = nn.Identity()
    return net


def vit(width=64):
    return timm.create_model(
        "vit_tiny_patch16_224",
        img_size=32,
        patch_size=4,
        embed_dim=width,
        depth=max(3, width // 32),
        num_heads=4,
        num_classes=10,
    )


NETS = {
    "conv": conv,
    "conv-bn": lambda **options: conv(nn.BatchNorm2d, **options),
    "resnet": resnet,
    "vit": vit,
}


def build(network, quick, factor=1):
    """A network; `factor` times as wide."""
    widths = {"conv": 24, "conv-bn": 24, "resnet": 16, "vit": 64}
    width = 8 if quick else factor * widths[network]
    return nn.Sequential(Normalise(), NETS[network](width=width))
