"""Whitening: the change of variables after which the posterior has curvature 1 per datum at its mode."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pyro_scale import tree
from pyro_scale.hessian import Spectrum
from pyro_scale.mode import Mode
from pyro_scale.types import Position


class Whitened:
    r"""A target in the coordinates z with position = mode + L z and $L L^\top = (-H / \text{num\_data})^{-1}$.

    Its posterior has curvature 1 per datum at the mode, so z has variance temperature / num_data there, like an
    unwhitened model of unit curvature. The value is that of the target: the constant log|det L| is left out.

    Args:
        target: what is whitened; its other functions are forwarded.
        mode: position and negative Hessian; directions of negative curvature count by their absolute value.
        num_data: N; 1 gives z unit variance.
    """

    def __init__(self, target: Any, mode: Mode, num_data: int) -> None:
        self.target = target
        self.shapes = tree.shapes(mode.position)
        self.mode = tree.ravel(mode.position)
        self.spectrum = Spectrum.of(mode.negative_hessian / num_data)

    def position(self, z: Position) -> Position:
        """The target's position."""
        return tree.unravel(self.mode + self.spectrum.factor(tree.ravel(z)), self.shapes)

    def coordinates(self, position: Position) -> Position:
        """The inverse of `position`."""
        return tree.unravel(self.spectrum.factor_inverse(tree.ravel(position) - self.mode), self.shapes)

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
