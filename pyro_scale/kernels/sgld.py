r"""Stochastic gradient Langevin dynamics: Welling & Teh (2011), equation 4, with step sizes quoted per datum.

With $g = \nabla \log p(\theta \mid \text{batch}) / N$ and $T = \text{temperature} / N$,

$$\theta' = \theta + \epsilon g + \sqrt{\max(0, 2 \epsilon T - \epsilon^2 V)} \, \xi, \qquad \xi \sim N(0, I),$$

where V is the variance of g over minibatches. Temperature 0 is `torch.optim.SGD(lr=step_size)` on
`-log_posterior / num_data`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from pyro_scale import tree
from pyro_scale.derivative import grad_and_value
from pyro_scale.kernels.noise import check_variance, injected_sd, noise_shape
from pyro_scale.schedules import as_schedule, check_number
from pyro_scale.types import BoundKernel, Info, LogPosterior, Noise, Position, Schedule, Settings


@dataclass(frozen=True)
class SGLD:
    """Settings of stochastic gradient Langevin dynamics.

    Args:
        step_size: epsilon, per datum: a number or schedule; > 0. For a posterior whose curvature per datum is 1 it
            is stable below 2 and its variance is 1 / (1 - step_size / 2) times the target's. None
            is tuned by warm-up; where that cannot be, it is `default_step_size`, which suits covariates of unit scale.
        temperature: 1 is the Bayesian posterior, below 1 a cold one, 0 gradient descent; a number or schedule; >= 0.
        gradient_variance: V, variance over minibatches of the gradient divided by num_data, subtracted from the
            injected noise; a number for all coordinates, or a tensor a site; >= 0.

    Raises:
        ArgumentError: a setting or num_data is negative, NaN or not a number.

    Example:
        >>> import torch
        >>> bound = SGLD(step_size=0.1, temperature=0.0).bind(lambda position, batch: -position["x"] ** 2, num_data=1)
        >>> state = bound.init({"x": torch.tensor(1.0)}, ())
        >>> state, info = bound.update(state, None, {"x": torch.tensor(0.0)}, Settings(0.1, 0.0))
        >>> state.position["x"]
        tensor(0.8000)

    References:
        Welling & Teh (2011), Bayesian learning via stochastic gradient Langevin dynamics, ICML.
    """

    default_step_size: ClassVar[float] = 0.01

    step_size: float | Schedule | None = None
    temperature: float | Schedule = 1.0
    gradient_variance: float | Position = 0.0

    def __post_init__(self) -> None:
        if self.step_size is not None:
            as_schedule("SGLD", "step_size", self.step_size, positive=True)
        as_schedule("SGLD", "temperature", self.temperature)
        check_variance("SGLD", self.gradient_variance)

    def bind(self, target: LogPosterior, num_data: int) -> BoundKernel:
        """Joins the settings to a target over `num_data` rows."""
        check_number("SGLD", "num_data", num_data, positive=True)
        variance = self.gradient_variance
        return BoundKernel(
            noise_shape=partial(noise_shape, "SGLD", variance),
            init=init,
            update=partial(update, target, num_data, gradient_variance=variance),
            move=None if isinstance(variance, dict) else partial(move, num_data, gradient_variance=variance),
        )


class SGLDState(NamedTuple):
    """Position of the chain."""

    position: Position


def init(position: Position, noise: Noise) -> SGLDState:
    """Starts at a position; the noise is not used."""
    return SGLDState(position)


def update(
    target: LogPosterior,
    num_data: int,
    state: SGLDState,
    batch: Any,
    noise: Position,
    settings: Settings,
    *,
    gradient_variance: float | Position = 0.0,
) -> tuple[SGLDState, Info]:
    """One step, by the equation at the top of this file."""
    gradient, log_posterior = grad_and_value(target)(state.position, batch)
    moved, clamped = move(num_data, state, gradient, noise, settings, gradient_variance=gradient_variance)
    return moved, Info(log_posterior, clamped)


def move(
    num_data: int,
    state: SGLDState,
    gradient: Position,
    noise: Position,
    settings: Settings,
    *,
    gradient_variance: float | Position = 0.0,
) -> tuple[SGLDState, Tensor]:
    """The step from a gradient of the log posterior, coordinate by coordinate."""
    step_size = settings.step_size
    variance = 2 * step_size * settings.temperature / num_data
    sd, clamped = injected_sd(variance, step_size, gradient_variance, noise)
    position = tree.map(
        lambda x, g, s, z: (x + step_size / num_data * g + s * z).to(x.dtype), state.position, gradient, sd, noise
    )
    return SGLDState(position), clamped
