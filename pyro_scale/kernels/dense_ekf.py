r"""The extended Kalman filter, any covariance: a normal that takes in one batch of rows after another.

From the prior's normal $N(\mu_0, P_0^{-1})$, with the gradient g of the log-likelihood of a batch at $\mu$, each row
once, and its Gauss-Newton matrix $J^\top H J$, H being what the distribution of the rows tells about its parameters,

$$P' = \left(P^{-1} + \tau^2 I\right)^{-1} + J^\top H J, \qquad \mu' = \mu + P'^{-1} g,$$

which is the natural gradient with a step of 1 / t, and for a normal likelihood of known noise the filter itself:
Ollivier (2018), theorem 2; Puskorius & Feldkamp (1991). Where the outputs are linear in the position and the
likelihood is normal, the result is the posterior, whatever the order of the rows and the sizes of the batches. tau,
the `transition_sd`, lets what was learned fade, for parameters that wander.

References:
    Ollivier (2018), Online natural gradient as a Kalman filter, Electronic Journal of Statistics.
    Puskorius & Feldkamp (1991), Decoupled extended Kalman filter training of feedforward layered networks, IJCNN.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from pyro_scale import tree
from pyro_scale.gaussians import DenseGaussian
from pyro_scale.kernels.filtered import prior_curvature, told_by
from pyro_scale.kernels.noise import no_noise
from pyro_scale.schedules import check_number
from pyro_scale.types import BoundKernel, Fitting, Info, LogPosterior, Noise, Position, Settings


@dataclass(frozen=True)
class DenseEKF:
    """Settings of the extended Kalman filter; for some hundred coordinates.

    Args:
        temperature: the result is of the posterior to the power of 1 / temperature, with that many times the
            covariance; > 0.
        transition_sd: tau, by how much the parameters move from batch to batch, in unconstrained coordinates; >= 0.

    Raises:
        ArgumentError: a setting or num_data is out of its range or not a number.

    Example:
        >>> DenseEKF().fitting(num_chains=1).one_pass
        True
    """

    step_size: ClassVar[float] = 1.0

    temperature: float = 1.0
    transition_sd: float = 0.0

    def __post_init__(self) -> None:
        check_number("DenseEKF", "temperature", self.temperature, positive=True)
        check_number("DenseEKF", "transition_sd", self.transition_sd)

    def fitting(self, num_chains: int) -> Fitting:
        """One normal, from the prior's through all rows."""
        return Fitting(one_pass=True)

    def bind(self, target: LogPosterior, num_data: int) -> BoundKernel:
        """Joins the settings to a target over `num_data` rows."""
        check_number("DenseEKF", "num_data", num_data, positive=True)
        start, step = partial(init, target), partial(update, target, self.transition_sd)
        return BoundKernel(no_noise, start, step, partial(approximation, self.temperature))


class DenseEKFState(NamedTuple):
    """Mean and inverse of the covariance, `(d, d)`."""

    position: Position
    precision: Tensor


def approximation(temperature: float, state: DenseEKFState) -> DenseGaussian:
    """The normal, at a temperature."""
    return DenseGaussian.of_precision(state.position, state.precision / temperature)


def init(target: Any, position: Position, noise: Noise) -> DenseEKFState:
    """The prior's normal around a position, its mode; the noise is not used."""
    return DenseEKFState(position, prior_curvature(target, position).dense().detach())


def update(
    target: Any, transition_sd: float, state: DenseEKFState, batch: Any, noise: Noise, settings: Settings
) -> tuple[DenseEKFState, Info]:
    """Takes in one batch, by the equations at the top of this file."""
    told = told_by(target, state.position, batch)
    precision, shapes = state.precision, tree.shapes(state.position)
    if transition_sd > 0:
        identity = torch.eye(len(precision), dtype=precision.dtype, device=precision.device)
        precision = torch.linalg.solve(identity + transition_sd**2 * precision, precision)
        precision = (precision + precision.T) / 2
    precision = precision + told.root.T @ told.root
    move = torch.linalg.solve(precision, told.gradient)
    position = tree.map(torch.add, state.position, tree.unravel(move, shapes))
    return DenseEKFState(position, precision), Info(told.log_likelihood, told.clamped)
