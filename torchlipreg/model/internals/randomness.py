"""Torch's own random numbers: left as they were, or drawn from a seed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor


@contextlib.contextmanager
def forked(device: torch.device) -> Iterator[None]:
    """Leave torch's generators, those of the CPU and of a device, as they were before the context."""
    of_device = _device_state(device)
    with torch.random.fork_rng([]):
        try:
            yield
        finally:
            if of_device is not None:
                torch.get_device_module(device).set_rng_state(of_device, *_which(device))


def generator_states(device: torch.device) -> Tensor:
    """Return the states of torch's generators, those of the CPU and of a device, as one tensor."""
    of_device = _device_state(device)
    return torch.get_rng_state() if of_device is None else torch.cat([torch.get_rng_state(), of_device])


def _device_state(device: torch.device) -> Tensor | None:
    if device.type == "cpu":
        return None
    state: Tensor = torch.get_device_module(device).get_rng_state(*_which(device))
    return state


def _which(device: torch.device) -> list[torch.device]:
    return [] if device.type == "mps" else [device]  # of which there is one: older versions take no argument


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draw torch's random numbers from a seed for the length of the context; its generators are left as they were."""
    with forked(device):
        torch.default_generator.manual_seed(seed)
        if device.type != "cpu":
            module = torch.get_device_module(device)
            with module.device(device) if _which(device) else contextlib.nullcontext():  # not the current one
                module.manual_seed(seed)
        yield
