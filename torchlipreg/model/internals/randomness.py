"""Torch's own random numbers: left as they were, or drawn from a seed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


def forked(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Leave torch's generators, those of the CPU and of a device, as they were before the context."""
    if device.type in ("cpu", "mps"):  # whose generator fork_rng() cannot read
        return torch.random.fork_rng([])
    return torch.random.fork_rng([device], device_type=device.type)


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draw torch's random numbers from a seed for the length of the context; its generators are left as they were."""
    with forked(device):
        torch.default_generator.manual_seed(seed)
        if device.type != "cpu":
            torch.get_device_module(device).manual_seed(seed)
        yield
