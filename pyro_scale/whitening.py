"""Whitening: the change of variables after which the posterior has curvature 1 per datum at its mode."""

from __future__ import annotations

import math
from copy import copy
from typing import Any

import torch
from torch import Tensor

from pyro_scale import tree
from pyro_scale.hessian import Spectrum
from pyro_scale.mode import Mode
from pyro_scale.types import Position


class Whitened:
    r"""A target in the coordinates z with position = center + L z and $L L^\top = (-H / \text{num\_data})^{-1}$.

    Its posterior has curvature 1 per datum at the mode, so z has variance temperature / num_data there, like an
    unwhitened model of unit curvature. The value is that of the target: the constant log|det L| is left out.

    Args:
        target: what is whitened; its other functions are forwarded.
        mode: position and negative Hessian; directions of negative curvature count by their absolute value.
        num_data: N; 1 gives z unit variance.

    Attributes:
        center: the position at z = 0, in the order of `tree.ravel`, `(d,)`.
        factor: L, `(d, d)`, or its diagonal `(d,)` where the negative Hessian is one.
        inverse: of L.
    """

    def __init__(self, target: Any, mode: Mode, num_data: int) -> None:
        self.target = target
        self.shapes = tree.shapes(mode.position)
        self.center = tree.ravel(mode.position)
        self.factor, self.inverse = Spectrum.of(mode.negative_hessian / num_data).factors()
        self._cut()

    def moved(self, center: Position, spread: Tensor) -> Whitened:
        """Other coordinates of the same target: their center in these, and L times a lower triangle, or a diagonal."""
        result = copy(self)
        result.center = tree.ravel(self.position(center))
        if self.factor.ndim == spread.ndim == 1:
            result.factor, result.inverse = self.factor * spread, self.inverse / spread
            result._cut()
            return result
        dense = torch.diag(self.factor) if self.factor.ndim == 1 else self.factor
        back = torch.diag(self.inverse) if self.inverse.ndim == 1 else self.inverse
        result.factor = dense @ spread
        result.inverse = torch.linalg.solve_triangular(spread, back, upper=False)
        return result

    def of(self, target: Any, num_data_ratio: float) -> Whitened:
        """Those of another target at the same curvature, of so many times as many rows."""
        result, unit = copy(self), math.sqrt(num_data_ratio)
        result.target, result.factor, result.inverse = target, unit * self.factor, self.inverse / unit
        result._cut()
        return result

    def _cut(self) -> None:
        """Center and diagonal by site."""
        self.centers = self.unflat(self.center)
        self.factors = self.unflat(self.factor) if self.factor.ndim == 1 else {}

    def position(self, z: Position) -> Position:
        """The target's position; leaves may have leading axes, which stay."""
        if self.factor.ndim == 1:  # leaf by leaf: vectors of all coordinates would cost large models a tenth of a step
            return {name: self.centers[name] + self.factors[name] * leaf for name, leaf in z.items()}
        return self.unflat(self.center + _times(self.factor, self.flat(z)))

    def coordinates(self, position: Position) -> Position:
        """The inverse of `position`."""
        return self.unflat(_times(self.inverse, self.flat(position) - self.center))

    def flat(self, leaves: Position) -> Tensor:
        """All coordinates along the last axis."""
        return tree.flat(leaves, self.shapes)

    def unflat(self, flat: Tensor) -> Position:
        """The inverse of `flat`."""
        return tree.unravel(flat, self.shapes)

    def __call__(self, z: Position, batch: Any) -> Tensor:
        value: Tensor = self.target(self.position(z), batch)
        return value

    def log_prior(self, z: Position) -> Tensor:
        """`CompiledModel.log_prior` at the position of z."""
        value: Tensor = self.target.log_prior(self.position(z))
        return value

    def log_likelihood(self, z: Position, batch: Any) -> dict[str, Tensor]:
        """`CompiledModel.log_likelihood` at the position of z."""
        values: dict[str, Tensor] = self.target.log_likelihood(self.position(z), batch)
        return values

    def outputs(self, z: Position, batch: Any) -> dict[str, dict[str, Tensor]]:
        """`CompiledModel.outputs` at the position of z."""
        values: dict[str, dict[str, Tensor]] = self.target.outputs(self.position(z), batch)
        return values

    def output_log_prob(self, outputs: Any, batch: Any) -> dict[str, Tensor]:
        """`CompiledModel.output_log_prob`, which no position enters."""
        values: dict[str, Tensor] = self.target.output_log_prob(outputs, batch)
        return values


def _times(matrix: Tensor, vectors: Tensor) -> Tensor:
    """A matrix, or a diagonal, times vectors along the last axis."""
    return matrix * vectors if matrix.ndim == 1 else vectors @ matrix.T


def divided(vectors: Tensor, spread: Tensor) -> Tensor:
    """The inverse of a lower triangle, or of a diagonal, times vectors along the last axis.

    Coordinates that follow those of the triangle stay.
    """
    if spread.ndim == 1:
        return vectors / spread
    if vectors.shape[-1] > len(spread):
        first, rest = vectors.tensor_split([len(spread)], -1)
        return torch.cat([divided(first, spread), rest], -1)
    columns = vectors.reshape(-1, vectors.shape[-1]).T  # one by one they would take a hundred times as long
    solved: Tensor = torch.linalg.solve_triangular(spread, columns, upper=False).T.reshape(vectors.shape)
    return solved
