"""A normal distribution with any covariance."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_scale import tree
from pyro_scale.gaussians.normals import log_density
from pyro_scale.types import Position


@dataclass(frozen=True)
class DenseGaussian:
    """Any covariance, by its Cholesky factor; for some thousand coordinates.

    Args:
        mean: position in the middle.
        factor: lower triangle L with a positive diagonal, covariance L L', in the order of `tree.ravel`; `(d, d)`.

    Example:
        >>> gaussian = DenseGaussian({"w": torch.zeros(2)}, torch.tensor([[1.0, 0.0], [1.0, 2.0]]))
        >>> gaussian.transform({"w": torch.ones(2)})
        {'w': tensor([1., 3.])}
    """

    mean: Position
    factor: Tensor

    @classmethod
    def of_precision(cls, mean: Position, precision: Tensor) -> DenseGaussian:
        """From the inverse of the covariance, `(d, d)`, which is positive definite."""
        # L^-T of the matrix turned upside down is lower triangular again: the covariance is never formed
        turned = torch.linalg.cholesky(precision.flip(0, 1)).flip(0, 1)
        identity = torch.eye(len(precision), dtype=precision.dtype, device=precision.device)
        return cls(mean, torch.linalg.solve_triangular(turned.T, identity, upper=False))

    @property
    def log_det(self) -> Tensor:
        """Of the covariance; 0-d."""
        return 2 * self.factor.diagonal().log().sum()

    def rescaled(self, mean: Position, factors: Position) -> DenseGaussian:
        """The law of a mean plus factors, one a coordinate, times the distance from the own mean."""
        return DenseGaussian(mean, tree.ravel(factors).unsqueeze(1) * self.factor)

    def transform(self, noise: Position) -> Position:
        """A position from standard normals; leading axes stay."""
        shapes = tree.shapes(self.mean)
        return tree.unravel(tree.ravel(self.mean) + tree.flat(noise, shapes) @ self.factor.T, shapes)

    def spread(self, rows: Position) -> Position:
        """Rows times the factor."""
        shapes = tree.shapes(self.mean)
        return tree.unravel(tree.flat(rows, shapes) @ self.factor, shapes)

    def log_prob(self, position: Position) -> Tensor:
        """Log density, in nats; leading axes stay."""
        away = tree.flat(position, tree.shapes(self.mean)) - tree.ravel(self.mean)
        noise = torch.linalg.solve_triangular(self.factor, away.unsqueeze(-1), upper=False).squeeze(-1)
        return log_density(noise.square().sum(-1), self.log_det, len(self.factor))
