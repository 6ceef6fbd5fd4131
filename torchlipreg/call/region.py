"""Region: where pairs are born, where they may go, and which of them can go nowhere."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchlipreg.call.settings import Settings
from torchlipreg.geometry.norms import rescale
from torchlipreg.geometry.pairs import PairSet, add_noise, draw_in_ball, draw_partners, is_stuck, on_sphere
from torchlipreg.geometry.quotient import Resolution

FEW = 16  # coordinates; of more, one that points out of the bounds in all of them is one in 100,000


@dataclass
class Region:
    """The places that the settings leave to pairs, at a resolution.

    Attributes:
        settings: Of the penalty.
        resolution: ε and the floor. In the limit ε → 0 a pair is a point and a direction of a constant length.
    """

    settings: Settings
    resolution: Resolution

    @property
    def x_stays(self) -> bool:
        """Whether an ascent moves x′ alone: x is anchored, or, in the limit, power steps turn the direction."""
        return self.settings.anchored or (self.resolution.limit and self.settings.ascent == "power")

    @property
    def shares_fx(self) -> bool:
        """Whether f(x) serves the whole call: x is a data point that stays, and not the place of a derivative."""
        return self.settings.anchored and not self.resolution.limit

    @property
    def projects(self) -> bool:
        """Whether moved points are projected on the ε-sphere: Algorithm 3 (ptv), which differs from 4 (tv) in that."""
        return self.settings.method == "ptv"

    def draw_around(self, centre: Tensor, rng: torch.Generator) -> PairSet:
        """Draw a pair in the ε-ball around each point, shape (N, *): the start of Algorithms 3 and 4."""
        limit = self.resolution.limit
        radius = self.resolution.unit if limit else self.resolution.radius or 1.0
        sphere = limit or (self.projects and self.settings.anchored)
        return self._settled(draw_in_ball(centre, radius, self.settings.input_norm, rng, on_sphere=sphere), rng)

    def draw_between(self, x: Tensor, rows: Tensor, rng: torch.Generator) -> PairSet:
        """Pair some rows of the data x, shape (M, *), with other rows: the start of Algorithm 1."""
        return self._settled(draw_partners(x, rows, rng), rng)

    def _settled(self, pairs: PairSet, rng: torch.Generator) -> PairSet:
        settings = self.settings
        if self.resolution.limit:
            return pairs
        if settings.noise:
            x_prime = add_noise(pairs.x_prime, settings.noise, rng)
            pairs = PairSet(pairs.x if settings.anchored else add_noise(pairs.x, settings.noise, rng), x_prime)
        return self.inside(pairs)

    def inside(self, pairs: PairSet) -> PairSet:
        """Return pairs within the bounds; of few coordinates, none that points out of a corner collapses there."""
        settings = self.settings
        if settings.bounds is None or pairs.x[:1].numel() > FEW:
            return pairs.clamp(settings.bounds, anchored=settings.anchored)
        x = pairs.x if settings.anchored else pairs.x.clamp(*settings.bounds)
        return PairSet(x, pairs.x_prime).turned_inside(settings.bounds, settings.input_norm, self.resolution.floor)

    def project(self, pairs: PairSet, centre: Tensor) -> PairSet:
        """Bring moved pairs back: to the ε-sphere (ptv), to that length (limit), to the bounds.

        Args:
            pairs: Shape (N, *).
            centre: The data points of a local method, shape (N, *).

        Returns:
            Pairs inside the region.
        """
        settings, radius = self.settings, self.resolution.radius
        if self.resolution.limit:
            x = pairs.x if settings.bounds is None or settings.anchored else pairs.x.clamp(*settings.bounds)
            return PairSet(x, x + rescale(pairs.x_prime - pairs.x, self.resolution.unit, settings.input_norm))
        if self.projects and radius is not None:
            moved = on_sphere(pairs, centre, radius, settings.input_norm)
            pairs = PairSet(pairs.x if settings.anchored else moved.x, moved.x_prime)
        return pairs.clamp(settings.bounds, anchored=settings.anchored)

    def is_stuck(self, pairs: PairSet, q: Tensor) -> Tensor:
        """Say which pairs an ascent cannot move, shape (N,), bool: see :func:`torchlipreg.geometry.pairs.is_stuck`."""
        return is_stuck(pairs, q, self.resolution.collapse_distance, self.settings.input_norm)
