"""Later: numbers on their way from the device to the host, read once they have arrived."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Later:
    """Holds the numbers that were sent last. Nothing here waits for the device."""

    def __init__(self) -> None:
        self._pending: tuple[Tensor, Any] | None = None

    def send(self, numbers: Tensor) -> None:
        """Send numbers, shape (n,), n ≥ 1, in the place of any that have not been taken."""
        if not numbers.is_cuda:
            self._pending = (numbers, None)
            return
        host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
        host.copy_(numbers, non_blocking=True)
        event: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        self._pending = (host, event)

    def take(self) -> list[float] | None:
        """Return the numbers if they have arrived, once; None otherwise."""
        if self._pending is None or (self._pending[1] is not None and not self._pending[1].query()):
            return None
        numbers, self._pending = self._pending[0], None
        arrived: list[float] = numbers.tolist()
        return arrived

    def send_flag(self, flag: Tensor) -> None:
        """Send a truth value, 0-dim."""
        self.send(flag.float().reshape(1))

    def take_flag(self) -> bool:
        """Say whether a truth value has arrived, and is true."""
        found = self.take()
        return found is not None and bool(found[0])

    def __getstate__(self) -> dict[str, Any]:
        return {"_pending": None}  # an event cannot be copied
