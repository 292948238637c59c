r"""A normal distribution whose precision is, site by site, a Kronecker product and its like.

The precision of a site seen as a matrix W is $(Q_1 \otimes Q_2) \, \mathrm{diag}(E) \, (Q_1 \otimes Q_2)^\top$ with
orthogonal $Q_1, Q_2$ and positive numbers E, one an entry of W. For $A \otimes B + \delta I$ of symmetric matrices A
and B, Q are their eigenvectors and $E = a b^\top + \delta$ of their eigenvalues: Martens & Grosse (2015); Ritter,
Botev & Barber (2018). A site may as well be seen as a vector, with one orthogonal matrix, or have none: a diagonal.

References:
    Martens & Grosse (2015), Optimizing neural networks with Kronecker-factored approximate curvature, ICML.
    Ritter, Botev & Barber (2018), A scalable Laplace approximation for neural networks, ICLR.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_scale import tree
from pyro_scale.gaussians.normals import log_density, sum_of_squares
from pyro_scale.types import Position


class Block(NamedTuple):
    """Precision of one site.

    Attributes:
        bases: Q, an orthogonal matrix for each axis of `eigenvalues`; `()` where the precision is diagonal.
        eigenvalues: E, > 0; the site is reshaped to their shape.
    """

    bases: tuple[Tensor, ...]
    eigenvalues: Tensor

    def into(self, values: Tensor) -> Tensor:
        """Values `(k, *E)` in the eigenvectors' coordinates."""
        return self._turned(values, [base.T for base in self.bases])

    def out_of(self, values: Tensor) -> Tensor:
        """The inverse of `into`."""
        return self._turned(values, self.bases)

    def _turned(self, values: Tensor, matrices: tuple[Tensor, ...] | list[Tensor]) -> Tensor:
        for axis, matrix in enumerate(matrices, start=1):
            values = (values.movedim(axis, -1) @ matrix.T).movedim(-1, axis)
        return values


@dataclass(frozen=True)
class KroneckerGaussian:
    """Sites that are independent of each other, each with a precision of Kronecker factors.

    Args:
        mean: position in the middle.
        blocks: site -> its precision.

    Example:
        >>> block = Block((torch.eye(2), torch.eye(1)), torch.tensor([[1.0], [4.0]]))
        >>> gaussian = KroneckerGaussian({"w": torch.zeros(2)}, {"w": block})
        >>> gaussian.transform({"w": torch.ones(2)})
        {'w': tensor([1.0000, 0.5000])}
    """

    mean: Position
    blocks: Mapping[str, Block]

    @property
    def log_det(self) -> Tensor:
        """Of the covariance; 0-d."""
        return -torch.stack([block.eigenvalues.log().sum() for block in self.blocks.values()]).sum()

    def transform(self, noise: Position) -> Position:
        """A position from standard normals; leading axes stay."""
        return tree.map(torch.add, self._scaled(noise), self.mean)

    def spread(self, rows: Position) -> Position:
        """Rows times F."""
        shaped = {name: self._shaped(name, leaf) for name, leaf in rows.items()}
        scaled = {name: self.blocks[name].into(leaf) * self._sd(name) for name, leaf in shaped.items()}
        return {name: leaf.reshape(rows[name].shape) for name, leaf in scaled.items()}

    def log_prob(self, position: Position) -> Tensor:
        """Log density, in nats; leading axes stay."""
        noise = {}
        for name, leaf in position.items():
            away = self._shaped(name, leaf - self.mean[name])
            noise[name] = (self.blocks[name].into(away) / self._sd(name)).reshape(leaf.shape)
        return log_density(sum_of_squares(noise, tree.shapes(self.mean)), self.log_det, tree.size(self.mean))

    def _scaled(self, noise: Position) -> Position:
        found = {}
        for name, leaf in noise.items():
            shaped = self._shaped(name, leaf) * self._sd(name)
            found[name] = self.blocks[name].out_of(shaped).reshape(leaf.shape)
        return found

    def _sd(self, name: str) -> Tensor:
        return self.blocks[name].eigenvalues.rsqrt()

    def _shaped(self, name: str, leaf: Tensor) -> Tensor:
        """Leading axes in one, the site's as those of the eigenvalues."""
        leading = leaf.shape[: leaf.ndim - self.mean[name].ndim]
        return leaf.reshape(leading.numel(), *self.blocks[name].eigenvalues.shape)
