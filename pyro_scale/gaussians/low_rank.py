r"""A normal distribution whose covariance is diagonal but for a few directions.

$F = D (I + V (S - I) V^\top)$ with a diagonal D, orthonormal columns V and a diagonal S: the covariance is
$D (I + V (S^2 - I) V^\top) D$ and the precision $D^{-1} (I + V (S^{-2} - I) V^\top) D^{-1}$, so that both a covariance
and a precision that are "diagonal plus low rank" are of this kind, and both are at hand without another factorisation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_scale import tree
from pyro_scale.gaussians.normals import log_density
from pyro_scale.types import Position


@dataclass(frozen=True)
class LowRankGaussian:
    """Independent coordinates, but for r directions that are stretched.

    Args:
        mean: position in the middle.
        scale: diagonal of D, leaves as those of the mean; > 0.
        directions: V, orthonormal columns in the order of `tree.ravel`, `(d, r)`.
        stretch: diagonal of S, `(r,)`; > 0. 1 leaves a direction as it is.

    Example:
        >>> one = torch.ones(1)
        >>> gaussian = LowRankGaussian({"w": torch.zeros(2)}, {"w": torch.ones(2)}, torch.eye(2)[:, :1], 3 * one)
        >>> gaussian.transform({"w": torch.ones(2)})
        {'w': tensor([3., 1.])}
    """

    mean: Position
    scale: Position
    directions: Tensor
    stretch: Tensor

    @classmethod
    def of_covariance(cls, mean: Position, sd: Position, columns: Tensor) -> LowRankGaussian:
        """Covariance diag(sd)**2 + U U' of the columns U, `(d, r)`."""
        left, sizes, _ = torch.linalg.svd(columns / tree.ravel(sd)[:, None], full_matrices=False)
        return cls(mean, sd, left, (1 + sizes**2).sqrt())

    @classmethod
    def of_precision(cls, mean: Position, diagonal: Position, columns: Tensor) -> LowRankGaussian:
        """Precision diag(diagonal) + U U' of the columns U, `(d, r)`; the diagonal is positive."""
        scale = tree.map(torch.rsqrt, diagonal)
        left, sizes, _ = torch.linalg.svd(columns * tree.ravel(scale)[:, None], full_matrices=False)
        return cls(mean, scale, left, (1 + sizes**2).rsqrt())

    @property
    def log_det(self) -> Tensor:
        """Of the covariance; 0-d."""
        return 2 * (torch.stack([leaf.log().sum() for leaf in self.scale.values()]).sum() + self.stretch.log().sum())

    def rescaled(self, mean: Position, factors: Position) -> LowRankGaussian:
        """The law of a mean plus factors, one a coordinate, times the distance from the own mean."""
        return LowRankGaussian(mean, tree.map(torch.mul, self.scale, factors), self.directions, self.stretch)

    def transform(self, noise: Position) -> Position:
        """A position from standard normals; leading axes stay."""
        shapes = tree.shapes(self.mean)
        stretched = tree.unravel(self._stretched(tree.flat(noise, shapes), self.stretch), shapes)
        return tree.map(lambda z, m, s: m + s * z, stretched, self.mean, self.scale)

    def spread(self, rows: Position) -> Position:
        """Rows times F."""
        shapes = tree.shapes(self.mean)
        scaled = tree.map(lambda row, s: row * s, rows, self.scale)
        return tree.unravel(self._stretched(tree.flat(scaled, shapes), self.stretch), shapes)

    def log_prob(self, position: Position) -> Tensor:
        """Log density, in nats; leading axes stay."""
        away = tree.map(lambda x, m, s: (x - m) / s, position, self.mean, self.scale)
        noise = self._stretched(tree.flat(away, tree.shapes(self.mean)), 1 / self.stretch)
        return log_density(noise.square().sum(-1), self.log_det, noise.shape[-1])

    def _stretched(self, vectors: Tensor, by: Tensor) -> Tensor:
        """I + V (S - I) V', which is symmetric, times vectors `(..., d)`."""
        return vectors + ((vectors @ self.directions) * (by - 1)) @ self.directions.T
