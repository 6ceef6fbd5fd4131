"""From quotients to the penalty's value: the largest, or the mean of their powers, over all ranks."""

from __future__ import annotations

from torch import Tensor

from torchlipreg.call.settings import Settings
from torchlipreg.distributed import reduce_max, reduce_mean
from torchlipreg.geometry.quotient import by_row


def reduce(q: Tensor, valid: Tensor | None, settings: Settings) -> tuple[Tensor, Tensor]:
    """Return reduceᵢ qᵢ^exponent and the largest quotient over all ranks, 0-dim each. Collective.

    Args:
        q: Quotients, shape (N,), or (N, positions) where each position of the output has its own.
        valid: Which of them count, shape (N,), bool; None for all. Others are zero.
        settings: Which reduction, which exponent.

    Returns:
        The value, with the gradient that data parallelism expects; and the largest quotient, detached.
    """
    if settings.method == "max":
        maximum = reduce_max(by_row(q))
        return maximum.pow(settings.exponent), maximum.detach()
    count = q.new_full((), q.shape[0]) if valid is None else valid.sum(dtype=q.dtype)  # no copy from the host
    return reduce_mean(row_power(q, settings.exponent).sum(), count, q.detach().amax())


def reduce_here(q: Tensor, settings: Settings) -> Tensor:
    """Return the value of this rank's quotients alone, shape (N,) or (N, positions), all of which count."""
    if settings.method == "max":
        return by_row(q).amax().pow(settings.exponent)
    return row_power(q, settings.exponent).mean()


def row_power(q: Tensor, exponent: int) -> Tensor:
    """Return q^exponent of each pair, shape (N,): the mean over positions where each has its own quotient."""
    powers = q.pow(exponent)
    return powers if q.dim() == 1 else powers.mean(1)
