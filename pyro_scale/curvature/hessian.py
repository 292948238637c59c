"""The negative Hessian of a function of some sites: products with many vectors at a time, and its diagonal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

import torch
from torch import Tensor

from pyro_scale import tree
from pyro_scale.types import Position

AT_ONCE = 2**24
"""Numbers of the vectors that are multiplied at once."""
FEW = 30
"""Vectors that are multiplied one by one: for more at once torch imports what it has for symbolic shapes."""


class NegativeHessian:
    """Of a function at a position, in the order of the sites.

    Args:
        function: of a position, 0-d.
        position: where; all sites.
        names: of the sites in which it is differentiated.

    Example:
        >>> minus = NegativeHessian(lambda at: -(at["w"] ** 2).sum(), {"w": torch.ones(2)}, ["w"])
        >>> minus(torch.eye(2))
        tensor([[2., 0.],
                [0., 2.]])
    """

    def __init__(self, function: Callable[[Position], Tensor], position: Position, names: Sequence[str]) -> None:
        self.shapes = {name: position[name].shape for name in names}
        self.here = tree.ravel({name: position[name].detach() for name in names}).requires_grad_()
        with torch.enable_grad():
            value = function({**position, **tree.unravel(self.here, self.shapes)})
            self.slope = torch.zeros_like(self.here)
            if value.requires_grad:
                (self.slope,) = torch.autograd.grad(value, self.here, create_graph=True, materialize_grads=True)

    def __call__(self, vectors: Tensor) -> Tensor:
        """Products with `(k, d)`, `(k, d)`."""
        if not self.slope.requires_grad:  # a linear function
            return torch.zeros_like(vectors)
        if len(vectors) > FEW:
            with suppress(RuntimeError):  # an operation that takes no batch of directions
                return -torch.autograd.grad(
                    self.slope, self.here, vectors, retain_graph=True, is_grads_batched=True, materialize_grads=True
                )[0]
        found = [
            torch.autograd.grad(self.slope, self.here, one, retain_graph=True, materialize_grads=True)[0]
            for one in vectors
        ]
        return -torch.stack(found)

    def dense(self) -> Tensor:
        """`(d, d)`, symmetric."""
        found = torch.cat([self(some) for some in self._basis(range(len(self.here)))])
        return (found + found.T) / 2

    def diagonal(self) -> Tensor:
        """`(d,)`, exactly: two products where the matrix is diagonal, two more a site where it is within sites.

        That a block is diagonal shows in two products with unequal vectors: each tells the same diagonal.
        """
        everything = slice(0, len(self.here))
        if (found := self._if_diagonal(everything)) is not None:
            return found
        found, first = torch.empty_like(self.here, requires_grad=False), 0
        for shape in self.shapes.values():
            own = slice(first, first + shape.numel())
            first = own.stop
            alone = self._if_diagonal(own)
            found[own] = self._one_by_one(own) if alone is None else alone
        return found

    def _if_diagonal(self, own: slice) -> Tensor | None:
        generator = torch.Generator().manual_seed(0)
        vectors = torch.zeros(2, len(self.here), dtype=self.here.dtype, device=self.here.device)
        number = own.stop - own.start
        drawn = 1 + torch.rand(2, number, generator=generator, dtype=torch.float64)
        vectors[:, own] = drawn.to(vectors)
        one, other = (self(vectors) / vectors)[:, own]
        tolerance = 1e-9 if one.dtype == torch.float64 else 1e-4
        return one if bool(((one - other).abs() <= tolerance * (one.abs() + other.abs())).all()) else None

    def _one_by_one(self, own: slice) -> Tensor:
        start, parts = own.start, []
        for some in self._basis(range(own.start, own.stop)):
            parts.append(self(some)[torch.arange(len(some)), torch.arange(start, start + len(some))])
            start += len(some)
        return torch.cat(parts)

    def _basis(self, coordinates: range) -> list[Tensor]:
        size = len(self.here)
        step = max(1, AT_ONCE // max(1, size))
        found = []
        for first in range(coordinates.start, coordinates.stop, step):
            which = torch.arange(first, min(first + step, coordinates.stop), device=self.here.device)
            found.append(torch.nn.functional.one_hot(which, size).to(self.here.detach()))
        return found
