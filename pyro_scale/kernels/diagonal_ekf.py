r"""The extended Kalman filter of independent coordinates, which takes in one batch of rows after another.

With variances v, before it those of the prior, the gradient g of the log-likelihood of a batch at $\mu$, each row once,
and a root R of its Gauss-Newton matrix, the normal that follows has the mean and the variances of the filter's step,

$$v \leftarrow v + \tau^2, \qquad C = V - V R^\top (I + R V R^\top)^{-1} R V, \qquad \mu' = \mu + C g, \qquad
v' = \mathrm{diag}(C), \qquad V = \mathrm{diag}(v):$$

Puskorius & Feldkamp (1991) decouple the filter so. Within a batch coordinates are correlated, from batch to batch they
are not: all rows in one batch give the means and variances of `dense_ekf.py`.

References:
    Puskorius & Feldkamp (1991), Decoupled extended Kalman filter training of feedforward layered networks, IJCNN.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch

from pyro_scale import tree
from pyro_scale.gaussians import DiagonalGaussian
from pyro_scale.kernels.filtered import prior_curvature, told_by
from pyro_scale.kernels.noise import no_noise
from pyro_scale.schedules import check_number
from pyro_scale.types import BoundKernel, Fitting, Info, LogPosterior, Noise, Position, Settings

FEW = 300
"""Coordinates up to which the prior's covariance is found by a matrix."""


@dataclass(frozen=True)
class DiagonalEKF:
    """Settings of the extended Kalman filter of independent coordinates.

    Args:
        temperature: the result is of the posterior to the power of 1 / temperature, with that many times the
            covariance; > 0.
        transition_sd: tau, by how much the parameters move from batch to batch, in unconstrained coordinates; >= 0.

    Raises:
        ArgumentError: a setting or num_data is out of its range or not a number.

    Example:
        >>> DiagonalEKF().fitting(num_chains=1).one_pass
        True
    """

    step_size: ClassVar[float] = 1.0

    temperature: float = 1.0
    transition_sd: float = 0.0

    def __post_init__(self) -> None:
        check_number("DiagonalEKF", "temperature", self.temperature, positive=True)
        check_number("DiagonalEKF", "transition_sd", self.transition_sd)

    def fitting(self, num_chains: int) -> Fitting:
        """One normal, from the prior's through all rows."""
        return Fitting(one_pass=True)

    def bind(self, target: LogPosterior, num_data: int) -> BoundKernel:
        """Joins the settings to a target over `num_data` rows."""
        check_number("DiagonalEKF", "num_data", num_data, positive=True)
        start, step = partial(init, target), partial(update, target, self.transition_sd)
        return BoundKernel(no_noise, start, step, partial(approximation, self.temperature))


class DiagonalEKFState(NamedTuple):
    """Mean and variances."""

    position: Position
    variance: Position


def approximation(temperature: float, state: DiagonalEKFState) -> DiagonalGaussian:
    """The normal, at a temperature."""
    return DiagonalGaussian(state.position, tree.map(lambda v: (temperature * v).sqrt(), state.variance))


def init(target: Any, position: Position, noise: Noise) -> DiagonalEKFState:
    """The prior's normal around a position, its mode; the noise is not used."""
    curvature = prior_curvature(target, position)
    if tree.size(position) <= FEW:
        variance = torch.linalg.inv(curvature.dense()).diagonal()
    else:  # of each given the others, which is the same where the prior has none of their correlations
        variance = 1 / curvature.diagonal()
    return DiagonalEKFState(position, tree.unravel(variance.detach(), tree.shapes(position)))


def update(
    target: Any, transition_sd: float, state: DiagonalEKFState, batch: Any, noise: Noise, settings: Settings
) -> tuple[DiagonalEKFState, Info]:
    """Takes in one batch, by the equations at the top of this file."""
    told, shapes = told_by(target, state.position, batch), tree.shapes(state.position)
    variance = tree.ravel(state.variance) + transition_sd**2
    spread = told.root * variance
    inner = torch.eye(len(spread), dtype=spread.dtype, device=spread.device) + spread @ told.root.T
    away = variance * told.gradient
    solved = torch.linalg.solve(inner, torch.cat([spread, (told.root @ away).unsqueeze(1)], 1))
    move = away - spread.T @ solved[:, -1]
    left = variance - (spread * solved[:, :-1]).sum(0)
    position = tree.map(torch.add, state.position, tree.unravel(move, shapes))
    return DiagonalEKFState(position, tree.unravel(left, shapes)), Info(told.log_likelihood, told.clamped)
