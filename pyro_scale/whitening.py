"""Whitening: the change of variables after which the posterior has curvature 1 per datum at its mode."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_scale import tree
from pyro_scale.mode import Mode, absolute
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
        curvature = mode.negative_hessian / num_data
        if curvature.ndim == 1:
            self.factor, self.inverse = absolute(curvature).rsqrt(), absolute(curvature).sqrt()
        else:
            eigenvalues, basis = torch.linalg.eigh(curvature)
            roots = absolute(eigenvalues).sqrt()
            self.factor, self.inverse = basis / roots, (basis * roots).T

    def position(self, z: Position) -> Position:
        """The target's position."""
        flat = tree.ravel(z)
        step = self.factor * flat if self.factor.ndim == 1 else self.factor @ flat
        return tree.unravel(self.mode + step, self.shapes)

    def coordinates(self, position: Position) -> Position:
        """The inverse of `position`."""
        step = tree.ravel(position) - self.mode
        flat = self.inverse * step if self.inverse.ndim == 1 else self.inverse @ step
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
