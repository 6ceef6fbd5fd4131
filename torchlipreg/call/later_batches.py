"""LaterBatches: whether they lie inside of ``bounds``, as the first one does, looked at now and then."""

from __future__ import annotations

from torch import Tensor

from torchlipreg.inspection.reuse import AGAIN
from torchlipreg.model.internals.to_host import Later
from torchlipreg.tensor_checks import lies_outside

LEFT_BOUNDS = (
    "A later batch lies outside of `bounds` = {}, as the first one did not: pairs are moved inside of them, further "
    "from such points than they should be. Give the range of all that the model receives, augmentation included."
)


class LaterBatches:
    """Looks at a batch in every 64th call, and tells when the device has the answer ready. Outlives the calls."""

    def __init__(self) -> None:
        self._count = 0
        self._later = Later()

    def left(self, points: Tensor, bounds: tuple[float, float]) -> bool:
        """Count a batch, and look at each 64th.

        Args:
            points: The batch, raw, shape (N, *).
            bounds: Of each coordinate.

        Returns:
            Whether one that was looked at before this call left the bounds.
        """
        left = self._later.take_flag()
        self._count += 1
        if self._count % AGAIN == 0:
            self._later.send_flag(lies_outside(points, bounds))
        return left
