r"""Langevin dynamics in the splitting BAOAB: Leimkuhler & Matthews (2013), with one gradient a step.

With $g = \nabla \log p(\theta \mid \text{batch}) / N$, $T = \text{temperature} / N$ and $c = e^{-\gamma h}$, one
step is a kick, half a drift, an Ornstein-Uhlenbeck step and half a drift:

$$m_1 = m + h g, \qquad m' = c m_1 + \sqrt{\max(0, (1 - c^2) T - h^2 (1 + c)^2 V / 4)} \, \xi, \qquad
\theta' = \theta + h (m_1 + m') / 2.$$

The half kicks at the end of one step and the start of the next take the same gradient and are made as one, so that
the momenta here are those between them. For a Gaussian target of curvature k a datum it is stable while h^2 k < 4, and
there positions have their exact law at any step; so have momenta, N(0, T), but they are not independent of positions:
their covariance is h T / 2, whatever the curvature.

V is the variance of g over minibatches. Positions alone obey
$\theta_{t+1} - \theta_t - c (\theta_t - \theta_{t-1}) = h^2 (1 + c) g_t / 2 + h s (\xi_t + \xi_{t-1}) / 2$, where s is
the factor of $\xi$. What V adds is white and what s adds is not, so one cannot replace the other at every
frequency. Here it does at frequency 0: known minibatch noise widens the variance of a position by its share
of the noise times h^2 k / (4 - h^2 k), and nothing at first order in h.

Temperature 0 is `torch.optim.SGD(lr=step_size**2 * (1 + c) / 2, momentum=c)` on `-log_posterior / num_data`: $m_1$ is
its buffer times -step_size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from pyro_scale import tree
from pyro_scale.derivative import grad_and_value
from pyro_scale.kernels.noise import check_variance, injected_sd, noise_shape
from pyro_scale.schedules import as_schedule, check_number
from pyro_scale.types import BoundKernel, Info, LogPosterior, Position, Schedule, Settings


@dataclass(frozen=True)
class BAOAB:
    """Settings of Langevin dynamics in the splitting BAOAB.

    Args:
        step_size: h, per datum: a number or schedule; > 0. For a posterior whose curvature per datum is 1 it is stable
            below 2, and with all rows at every step the sd of a Gaussian is exact at any step below. None is tuned
            by warm-up; where that cannot be, it is `default_step_size`, which suits covariates of unit scale.
        friction: gamma, how fast momentum is forgotten, per unit of step_size; > 0. Large friction makes it SGLD of
            step size step_size**2 / 2 whose noise is averaged over neighbouring steps.
        temperature: 1 is the Bayesian posterior, below 1 a cold one, 0 gradient descent with momentum
            exp(-step_size * friction); a number or schedule; >= 0.
        gradient_variance: V, variance over minibatches of the gradient divided by num_data, whose effect on positions
            is taken out of the injected noise; a number for all coordinates, or a tensor a site; >= 0.

    Raises:
        ArgumentError: a setting or num_data is negative, NaN or not a number.

    Example:
        >>> kernel = BAOAB(step_size=1.0, friction=100.0, temperature=0.0)
        >>> bound = kernel.bind(lambda position, batch: -position["x"] ** 2, num_data=1)
        >>> state = bound.init({"x": torch.tensor(1.0)}, {"x": torch.tensor(0.0)})
        >>> state, info = bound.update(state, None, {"x": torch.tensor(0.0)}, Settings(0.5, 0.0))
        >>> state.position["x"]
        tensor(0.7500)

    References:
        Leimkuhler & Matthews (2013), Rational construction of stochastic numerical methods for molecular sampling,
        Applied Mathematics Research eXpress.
    """

    default_step_size: ClassVar[float] = 0.1

    step_size: float | Schedule | None = None
    friction: float = 1.0
    temperature: float | Schedule = 1.0
    gradient_variance: float | Position = 0.0

    def __post_init__(self) -> None:
        if self.step_size is not None:
            as_schedule("BAOAB", "step_size", self.step_size, positive=True)
        check_number("BAOAB", "friction", self.friction, positive=True)
        as_schedule("BAOAB", "temperature", self.temperature)
        check_variance("BAOAB", self.gradient_variance)

    def bind(self, target: LogPosterior, num_data: int) -> BoundKernel:
        """Joins the settings to a target over `num_data` rows."""
        check_number("BAOAB", "num_data", num_data, positive=True)
        temperature = as_schedule("BAOAB", "temperature", self.temperature)(0)
        chosen: Any = {"friction": self.friction, "gradient_variance": self.gradient_variance}
        return BoundKernel(
            noise_shape=partial(noise_shape, "BAOAB", self.gradient_variance),
            init=partial(init, temperature / num_data),
            update=partial(update, target, num_data, **chosen),
            move=None if isinstance(self.gradient_variance, dict) else partial(move, num_data, **chosen),
        )


class BAOABState(NamedTuple):
    """Position and momentum of the chain."""

    position: Position
    momentum: Position


def init(temperature_per_datum: float, position: Position, noise: Position) -> BAOABState:
    """Starts at a position with momenta from N(0, temperature / num_data), their law at any step size."""
    return BAOABState(position, tree.scale(noise, math.sqrt(temperature_per_datum)))


def update(
    target: LogPosterior,
    num_data: int,
    state: BAOABState,
    batch: Any,
    noise: Position,
    settings: Settings,
    *,
    friction: float = 1.0,
    gradient_variance: float | Position = 0.0,
) -> tuple[BAOABState, Info]:
    """One step, by the equations at the top of this file."""
    gradient, log_posterior = grad_and_value(target)(state.position, batch)
    moved, clamped = move(
        num_data, state, gradient, noise, settings, friction=friction, gradient_variance=gradient_variance
    )
    return moved, Info(log_posterior, clamped)


def move(
    num_data: int,
    state: BAOABState,
    gradient: Position,
    noise: Position,
    settings: Settings,
    *,
    friction: float = 1.0,
    gradient_variance: float | Position = 0.0,
) -> tuple[BAOABState, Tensor]:
    """The step from a gradient of the log posterior, coordinate by coordinate."""
    # 1 - c**2 would lose digits in a narrow type
    step_size = torch.as_tensor(settings.step_size, dtype=torch.float64, device=next(iter(gradient.values())).device)
    kept = torch.exp(-friction * step_size)
    variance = -torch.expm1(-2 * friction * step_size) * settings.temperature / num_data
    sd, clamped = injected_sd(variance, step_size * (1 + kept) / 2, gradient_variance, noise)
    kicked = tree.map(lambda m, g: (m + step_size / num_data * g).to(m.dtype), state.momentum, gradient)
    momentum = tree.map(lambda m, s, z: (kept * m + s * z).to(m.dtype), kicked, sd, noise)
    position = tree.map(
        lambda x, before, after: (x + step_size / 2 * (before + after)).to(x.dtype), state.position, kicked, momentum
    )
    return BAOABState(position, momentum), clamped
