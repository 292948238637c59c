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
from pyro_scale.derivative import grad_and_value
from pyro_scale.gaussians import DiagonalGaussian
from pyro_scale.kernels.gauss_newton import information_root, log_likelihood, negative_hessian
from pyro_scale.schedules import check_number
from pyro_scale.types import BoundKernel, Fitting, Info, LogPosterior, Noise, Position, Settings, Shapes


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
        return BoundKernel(noise_shape, start, step, partial(approximation, self.temperature))


class DiagonalEKFState(NamedTuple):
    """Mean and variances."""

    position: Position
    variance: Position


def noise_shape(position: Position) -> Shapes:
    """None is taken."""
    return {}


def approximation(temperature: float, state: DiagonalEKFState) -> DiagonalGaussian:
    """The normal, at a temperature."""
    return DiagonalGaussian(state.position, tree.map(lambda v: (temperature * v).sqrt(), state.variance))


def init(target: Any, position: Position, noise: Noise) -> DiagonalEKFState:
    """The prior's normal around a position, its mode; the noise is not used."""
    covariance = torch.linalg.inv(negative_hessian(target.log_prior, position))
    return DiagonalEKFState(position, tree.unravel(covariance.diagonal(), tree.shapes(position)))


def update(
    target: Any, transition_sd: float, state: DiagonalEKFState, batch: Any, noise: Noise, settings: Settings
) -> tuple[DiagonalEKFState, Info]:
    """Takes in one batch, by the equations at the top of this file."""
    # each row once: the batch does not stand for all of them
    gradient, value = grad_and_value(partial(log_likelihood, target))(state.position, batch)
    root, shapes = information_root(target, state.position, batch), tree.shapes(state.position)
    variance = tree.ravel(state.variance) + transition_sd**2
    spread = root * variance
    inner = torch.eye(len(root), dtype=root.dtype, device=root.device) + spread @ root.T
    away = variance * tree.flat(gradient, shapes)
    solved = torch.linalg.solve(inner, torch.cat([spread, (root @ away).unsqueeze(1)], 1))
    move = away - spread.T @ solved[:, -1]
    left = variance - (spread * solved[:, :-1]).sum(0)
    position = tree.map(torch.add, state.position, tree.unravel(move, shapes))
    after = DiagonalEKFState(position, tree.unravel(left, shapes))
    return after, Info(value, torch.zeros((), dtype=torch.long, device=value.device))
