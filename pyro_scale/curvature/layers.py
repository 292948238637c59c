r"""Where sites are the weights of layers: what goes in, and where the gradient of what comes out can be read.

For a linear layer $z = W a$ the gradient in W of a function of one row is $g a^\top$ with $g = \nabla_z$, so that
squares and outer products of gradients need no gradient of a row itself. A convolution is a linear layer of its
patches, an embedding one of indicator vectors; both, and a linear layer applied to a sequence, share their weight over
R places of a row, whose gradients add up: $\sum_r g_r a_r^\top$. A bias or an element-wise factor has $g$, or g times
what it multiplies, summed over what it is broadcast along.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge


@dataclass(frozen=True)
class Linear:
    """A site as the matrix of a linear map.

    Attributes:
        site: its name.
        edge: where the gradient of the result comes by.
        inputs: a of some of the rows, `(n, R, i)`, made when asked for.
        arrange: gradient of the result -> g, `(n, R, o)`.
        turned: whether the site is stored as `(i, o)` rather than `(o, i)`.
    """

    site: str
    edge: GradientEdge
    inputs: Callable[[slice], Tensor]
    arrange: Callable[[Tensor], Tensor]
    turned: bool

    def by_row(self, gradient: Tensor, shape: torch.Size, rows: slice) -> Tensor:
        """Gradient in the site of each of some rows, `(n, *site)`."""
        a, g = self.inputs(rows), self.arrange(gradient[rows])
        found = a.mT @ g if self.turned else g.mT @ a
        return found.reshape(len(found), *shape)


@dataclass(frozen=True)
class Elementwise:
    """A site that is added to something, or multiplies it.

    Attributes:
        site: its name.
        edge: where the gradient of the result comes by.
        factor: what is multiplied; None for a sum.
        shape: the site's, with as many axes as the result.
    """

    site: str
    edge: GradientEdge
    factor: Tensor | None
    shape: tuple[int, ...]

    def by_row(self, gradient: Tensor, shape: torch.Size, rows: slice) -> Tensor:
        """Gradient in the site of each of some rows, `(n, *site)`."""
        each = gradient[rows] if self.factor is None else gradient[rows] * self._factor(rows)
        along = [axis for axis in range(1, each.ndim) if self.shape[axis] == 1]
        found = each.sum(along) if along else each
        return found.reshape(len(found), *shape)

    def _factor(self, rows: slice) -> Tensor:
        assert self.factor is not None
        whole = self.factor.ndim < len(self.shape) or len(self.factor) == 1
        return self.factor if whole else self.factor[rows]


Use = Linear | Elementwise
