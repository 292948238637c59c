r"""The extended Kalman filter of independent coordinates: `dense_ekf.py` with diagonal matrices throughout.

$$p' = \frac{1}{1 / p + \tau^2} + \mathrm{diag}(J^\top H J), \qquad \mu' = \mu + g / p'.$$

Puskorius & Feldkamp (1991) call it decoupled. Where coordinates are correlated in the posterior its variances are those
of each given the others, and the mean is near that of the posterior only.

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
from pyro_scale.kernels.gauss_newton import gauss_newton, log_likelihood, negative_hessian
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
    """Mean, and inverses of the variances."""

    position: Position
    precision: Position


def noise_shape(position: Position) -> Shapes:
    """None is taken."""
    return {}


def approximation(temperature: float, state: DiagonalEKFState) -> DiagonalGaussian:
    """The normal, at a temperature."""
    return DiagonalGaussian(state.position, tree.map(lambda p: (temperature / p).sqrt(), state.precision))


def init(target: Any, position: Position, noise: Noise) -> DiagonalEKFState:
    """The prior's normal around a position, its mode; the noise is not used."""
    diagonal = negative_hessian(target.log_prior, position).diagonal()
    return DiagonalEKFState(position, tree.unravel(diagonal, tree.shapes(position)))


def update(
    target: Any, transition_sd: float, state: DiagonalEKFState, batch: Any, noise: Noise, settings: Settings
) -> tuple[DiagonalEKFState, Info]:
    """Takes in one batch, by the equations at the top of this file."""
    # each row once: the batch does not stand for all of them
    gradient, value = grad_and_value(partial(log_likelihood, target))(state.position, batch)
    found = gauss_newton(target, state.position, batch).diagonal()
    information = tree.unravel(found, tree.shapes(state.position))
    precision = tree.map(lambda p, more: 1 / (1 / p + transition_sd**2) + more, state.precision, information)
    position = tree.map(lambda x, g, p: x + g / p, state.position, gradient, precision)
    return DiagonalEKFState(position, precision), Info(value, torch.zeros((), dtype=torch.long, device=value.device))
