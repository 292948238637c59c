"""A normal distribution of some sites, while the others are held at a value."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pyro_scale.types import Gaussian, Position


@dataclass(frozen=True)
class HeldGaussian:
    """Some sites are normal, and the others do not move; a density is that of the former.

    Args:
        gaussian: of the sites that move.
        held: the values of the others.
        order: of all sites.

    Example:
        >>> import torch
        >>> from pyro_scale.gaussians.diagonal import DiagonalGaussian
        >>> moving = DiagonalGaussian({"w": torch.zeros(1)}, {"w": torch.ones(1)})
        >>> HeldGaussian(moving, {"b": torch.ones(1)}, ("b", "w")).transform({"w": torch.ones(4, 1)})["b"].shape
        torch.Size([4, 1])
    """

    gaussian: Gaussian
    held: Position
    order: tuple[str, ...]

    @property
    def mean(self) -> Position:
        """Of all sites."""
        return self._all(self.gaussian.mean, self.held)

    @property
    def log_det(self) -> Tensor:
        """Of the covariance of the sites that move; 0-d."""
        return self.gaussian.log_det

    def transform(self, noise: Position) -> Position:
        """A position from standard normals, of which those of held sites are not needed; leading axes stay."""
        moved = self.gaussian.transform(self._moving(noise))
        name, mean = next(iter(self.gaussian.mean.items()))
        leading = moved[name].shape[: moved[name].ndim - mean.ndim]
        return self._all(moved, {name: leaf.expand(*leading, *leaf.shape) for name, leaf in self.held.items()})

    def spread(self, rows: Position) -> Position:
        """Rows times the factor, of the sites that move."""
        return self.gaussian.spread(self._moving(rows))

    def log_prob(self, position: Position) -> Tensor:
        """Log density of the sites that move, in nats; leading axes stay."""
        return self.gaussian.log_prob(self._moving(position))

    def _moving(self, values: Position) -> Position:
        return {name: values[name] for name in self.gaussian.mean}

    def _all(self, moving: Position, held: Position) -> Position:
        return {name: moving[name] if name in moving else held[name] for name in self.order}
