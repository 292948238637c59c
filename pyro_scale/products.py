r"""Curvature of many coordinates, from products of the Hessian with vectors: no matrix is made.

The diagonal of a Hessian H is the mean of $v \odot H v$ over random signs v: Bekas, Kokiopoulou & Saad (2007). Its
largest eigenvalue, in size, is where $\|H v\| / \|v\|$ goes when v becomes H v.

References:
    Bekas, Kokiopoulou & Saad (2007), An estimator for the diagonal of a matrix, Applied Numerical Mathematics.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pyro_scale import tree
from pyro_scale.types import Position

MOST_PRODUCTS = 30
SETTLED = 0.01
"""The relative change of the largest curvature at which it is taken."""
PROBES = 16


class Products:
    """Products of the negative Hessian of a sum of functions with vectors, at a position.

    Args:
        terms: functions of a position.
        position: where.
    """

    def __init__(self, terms: Sequence[Callable[[Position], Tensor]], position: Position) -> None:
        self.terms = terms
        self.shapes = tree.shapes(position)
        self.vector = tree.ravel(position).detach()
        self.kept: tuple[Tensor, Tensor, float] | None = None  # of a single term, which is differentiated many times

    def __call__(self, direction: Tensor) -> Tensor:
        """The product with `(d,)`."""
        total = torch.zeros_like(direction)
        for term in self.terms:
            here, slope, _ = self._slope(term)
            if slope.requires_grad:  # else a linear function
                keep = self.kept is not None
                total -= torch.autograd.grad(slope, here, direction, retain_graph=keep, materialize_grads=True)[0]
        return total

    def gradient(self) -> tuple[Tensor, float]:
        """Of the sum, `(d,)`, and its value."""
        slopes = [self._slope(term) for term in self.terms]
        return torch.stack([slope.detach() for _, slope, _ in slopes]).sum(0), sum(value for *_, value in slopes)

    def _slope(self, term: Callable[[Position], Tensor]) -> tuple[Tensor, Tensor, float]:
        """Where a gradient is taken, it, ready to be differentiated, and the value."""
        if self.kept is not None:
            return self.kept
        with torch.enable_grad():
            here = self.vector.detach().requires_grad_()
            value = term(tree.unravel(here, self.shapes))
            slope = torch.zeros_like(self.vector)
            if value.requires_grad:
                (slope,) = torch.autograd.grad(value, here, create_graph=True, materialize_grads=True)
        found = here, slope, float(value.detach())
        if len(self.terms) == 1:
            self.kept = found
        return found


def largest_eigenvalue(products: Callable[[Tensor], Tensor], direction: Tensor) -> tuple[float, Tensor]:
    """The largest in size, from below, and its direction of length 1; NaN where products are not finite.

    Args:
        products: of the matrix with a vector.
        direction: to start from; not 0.

    Example:
        >>> value, direction = largest_eigenvalue(lambda v: v * torch.tensor([1.0, -3.0]), torch.ones(2))
        >>> round(value, 2)
        3.0
    """
    before, direction = 0.0, direction / direction.norm()
    for _ in range(MOST_PRODUCTS):
        product = products(direction)
        size = float(product.norm())
        if not 0 < size < torch.inf:
            return size, direction
        direction = product / size
        if abs(size - before) <= SETTLED * size:
            break
        before = size
    return size, direction


def diagonal(products: Callable[[Tensor], Tensor], units: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """An estimate of the diagonal of a symmetric matrix, `(d,)`, exact where the matrix is diagonal; and its error.

    Args:
        products: of the matrix with a vector.
        units: of the coordinates, `(d,)`, > 0: what the other entries of a row add to the error is in proportion.
        generator: of the signs.
    """
    total, squares = torch.zeros_like(units), torch.zeros_like(units)
    for _ in range(PROBES):
        signs = torch.randint(2, units.shape, generator=generator, device="cpu").to(units) * 2 - 1
        one = signs * products(signs * units) / units
        total += one
        squares += one**2
    mean = total / PROBES
    return mean, ((squares / PROBES - mean**2).clamp(min=0) / PROBES).sqrt()
