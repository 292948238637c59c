"""A normal distribution whose coordinates are independent."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_scale import tree
from pyro_scale.gaussians.normals import log_density, sum_of_squares
from pyro_scale.types import Position


@dataclass(frozen=True)
class DiagonalGaussian:
    """Independent coordinates.

    Args:
        mean: position in the middle.
        sd: standard deviations, leaves as those of the mean; > 0.

    Example:
        >>> gaussian = DiagonalGaussian({"w": torch.zeros(2)}, {"w": torch.tensor([1.0, 2.0])})
        >>> gaussian.transform({"w": torch.ones(2)})
        {'w': tensor([1., 2.])}
    """

    mean: Position
    sd: Position

    @property
    def log_det(self) -> Tensor:
        """Of the covariance; 0-d."""
        return 2 * torch.stack([leaf.log().sum() for leaf in self.sd.values()]).sum()

    def rescaled(self, mean: Position, factors: Position) -> DiagonalGaussian:
        """The law of a mean plus factors, one a coordinate, times the distance from the own mean."""
        return DiagonalGaussian(mean, tree.map(torch.mul, self.sd, factors))

    def transform(self, noise: Position) -> Position:
        """A position from standard normals; leading axes stay."""
        return tree.map(lambda z, m, s: m + s * z, noise, self.mean, self.sd)

    def spread(self, rows: Position) -> Position:
        """Rows times the standard deviations."""
        return tree.map(lambda row, s: row * s, rows, self.sd)

    def log_prob(self, position: Position) -> Tensor:
        """Log density, in nats; leading axes stay."""
        noise = tree.map(lambda x, m, s: (x - m) / s, position, self.mean, self.sd)
        return log_density(sum_of_squares(noise, tree.shapes(self.mean)), self.log_det, tree.size(self.mean))
