r"""Stochastic gradient Nosé-Hoover thermostat: Ding et al. (2014), in the splitting of Leimkuhler & Shang (2016).

With $g = \nabla \log p(\theta \mid \text{batch}) / N$ and $T = \text{temperature} / N$, one step of size h is a kick,
half a drift, half a step of the thermostat $\zeta$, friction and noise, and the two halves again:

$$m_1 = m + h g, \qquad \zeta_1 = \zeta + \tfrac h2 \rho (m_1^2 / T - 1), \qquad
m' = e^{-h \zeta_1} m_1 + \sqrt{\gamma T (1 - e^{-2 h \zeta_1}) / \zeta_1} \, \xi,$$

$$\zeta' = \zeta_1 + \tfrac h2 \rho (m'^2 / T - 1), \qquad \theta' = \theta + h (m_1 + m') / 2.$$

As h goes to 0 positions follow the posterior, momenta N(0, T) and the thermostat $N(\gamma + h V / (2 T), \rho)$, all
independent, for whatever variance V of g over minibatches: the thermostat finds the friction that the noise of the
gradient asks for. It is driven by $m^2 / T$, which knows nothing of N. A scalar thermostat is driven by the mean of
$m^2 / T$ over all coordinates; its variance is $\rho$ divided by their number.

Ding's order, whose thermostat pins momenta that a first-order step has left too wide, makes positions too narrow: their
variance by 4 % at step 0.1 and unit curvature, where this one (BADODAB, its two half kicks in one) has below 0.3 %.
The thermostat is kept below 2 / h, beyond which a step forgets momentum anyway: far from the posterior, where m is
thousands of times $\sqrt T$, it would otherwise grow so large that the chain hardly moves.

Temperature 0 has no thermal momentum to aim at: the thermostat is `friction`, and a step is
`torch.optim.SGD(lr=step_size**2 * (1 + c) / 2, momentum=c)` on `-log_posterior / num_data`, $c = e^{-h \gamma}$.
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
from pyro_scale.errors import ArgumentError
from pyro_scale.kernels.noise import noise_shape
from pyro_scale.schedules import as_schedule, check_number
from pyro_scale.types import BoundKernel, Info, LogPosterior, Position, Schedule, Settings


@dataclass(frozen=True)
class SGNHT:
    """Settings of the stochastic gradient Nosé-Hoover thermostat.

    Args:
        step_size: h, per datum: a number or schedule; > 0. For a posterior whose curvature per datum is 1 it is stable
            below 2. Noise of the gradient is absorbed while step_size**2 * V stays below temperature / num_data:
            at 0.2 of it the variance of positions is 0.4 % too small, at 0.5 2 %, at 1 8 %. None is tuned
            by warm-up; where that cannot be, it is `default_step_size`, which suits covariates of unit scale.
        friction: gamma, which rules the noise that is injected, and the thermostat at the start, per unit of
            step_size; >= 0. 0 injects nothing: all noise must then come from minibatches.
        temperature: 1 is the Bayesian posterior, below 1 a cold one, 0 gradient descent with momentum
            exp(-step_size * friction); a number or schedule; >= 0.
        thermostat: "scalar" for one that keeps the mean kinetic energy, which is right when the noise of the gradient
            is alike in all coordinates; "diagonal" for one a coordinate, when it is not.
        thermostat_rate: rho, how fast the thermostat reacts, per unit of step_size; > 0. It is also the variance of a
            diagonal thermostat; well above friction**2 / 2 the thermostat swings.

    Raises:
        ArgumentError: a setting or num_data is negative, NaN or not a number, or the thermostat unknown.

    Example:
        >>> kernel = SGNHT(step_size=1.0, friction=0.0, temperature=0.0)
        >>> bound = kernel.bind(lambda position, batch: -position["x"] ** 2, num_data=1)
        >>> state = bound.init({"x": torch.tensor(1.0)}, {"x": torch.tensor(0.0)})
        >>> state, info = bound.update(state, None, {"x": torch.tensor(0.0)}, Settings(0.5, 0.0))
        >>> state.position["x"], state.thermostat
        (tensor(0.5000), tensor(0.))

    References:
        Ding, Fang, Babbush, Chen, Skeel & Neven (2014), Bayesian sampling using stochastic gradient thermostats,
        NeurIPS. Leimkuhler & Shang (2016), Adaptive thermostats for noisy gradient systems, SIAM Journal on
        Scientific Computing.
    """

    default_step_size: ClassVar[float] = 0.1

    step_size: float | Schedule | None = None
    friction: float = 1.0
    temperature: float | Schedule = 1.0
    thermostat: str = "scalar"
    thermostat_rate: float = 1.0

    def __post_init__(self) -> None:
        if self.step_size is not None:
            as_schedule("SGNHT", "step_size", self.step_size, positive=True)
        check_number("SGNHT", "friction", self.friction)
        as_schedule("SGNHT", "temperature", self.temperature)
        if self.thermostat not in ("scalar", "diagonal"):
            raise ArgumentError(f"SGNHT: thermostat is {self.thermostat!r}; it must be 'scalar' or 'diagonal'.")
        check_number("SGNHT", "thermostat_rate", self.thermostat_rate, positive=True)

    def bind(self, target: LogPosterior, num_data: int) -> BoundKernel:
        """Joins the settings to a target over `num_data` rows."""
        check_number("SGNHT", "num_data", num_data, positive=True)
        temperature = as_schedule("SGNHT", "temperature", self.temperature)(0)
        return BoundKernel(
            noise_shape=partial(noise_shape, "SGNHT", 0.0),
            init=partial(init, temperature / num_data, self.friction, self.thermostat == "diagonal"),
            update=partial(update, target, num_data, friction=self.friction, thermostat_rate=self.thermostat_rate),
        )


class SGNHTState(NamedTuple):
    """Position, momentum and thermostat of the chain; a scalar thermostat is one number, a diagonal one a tree."""

    position: Position
    momentum: Position
    thermostat: Tensor | Position


def init(
    temperature_per_datum: float, friction: float, diagonal: bool, position: Position, noise: Position
) -> SGNHTState:
    """Starts at a position with momenta from N(0, temperature / num_data) and the thermostat at the friction."""
    first = next(iter(position.values()))
    scalar = torch.full((), friction, dtype=first.dtype, device=first.device)
    thermostat = tree.full_like(position, friction) if diagonal else scalar
    return SGNHTState(position, tree.scale(noise, math.sqrt(temperature_per_datum)), thermostat)


def update(
    target: LogPosterior,
    num_data: int,
    state: SGNHTState,
    batch: Any,
    noise: Position,
    settings: Settings,
    *,
    friction: float = 1.0,
    thermostat_rate: float = 1.0,
) -> tuple[SGNHTState, Info]:
    """One step, by the equations at the top of this file."""
    gradient, log_posterior = grad_and_value(target)(state.position, batch)
    wide = partial(torch.as_tensor, dtype=torch.float64, device=log_posterior.device)
    step_size, thermal = wide(settings.step_size), wide(settings.temperature) / num_data

    def half_step(zeta: Tensor, square: Tensor) -> Tensor:
        """The thermostat after h / 2, driven by m**2."""
        excess = square / torch.where(thermal > 0, thermal, 1.0) - 1
        driven = torch.minimum(zeta + step_size / 2 * thermostat_rate * excess, 2 / step_size)
        return torch.where(thermal > 0, driven, friction).to(zeta.dtype)

    def damped(m: Tensor, zeta: Tensor, z: Tensor) -> Tensor:
        """The momentum after h of friction zeta, and of noise that would balance the friction gamma."""
        exponent = 2 * step_size * zeta
        share = torch.where(exponent == 0, 1.0, -torch.expm1(-exponent) / torch.where(exponent == 0, 1.0, exponent))
        return (torch.exp(-exponent / 2) * m + (2 * friction * step_size * thermal * share).sqrt() * z).to(m.dtype)

    kicked = tree.map(lambda m, g: (m + step_size / num_data * g).to(m.dtype), state.momentum, gradient)
    middle = _driven(half_step, state.thermostat, kicked)
    frictions = middle if isinstance(middle, dict) else dict.fromkeys(kicked, middle)
    momentum = tree.map(damped, kicked, frictions, noise)
    position = tree.map(
        lambda x, before, after: (x + step_size / 2 * (before + after)).to(x.dtype), state.position, kicked, momentum
    )
    none = torch.zeros((), dtype=torch.long, device=log_posterior.device)
    return SGNHTState(position, momentum, _driven(half_step, middle, momentum)), Info(log_posterior, none)


def _driven(half_step: Any, thermostat: Tensor | Position, momentum: Position) -> Any:
    """A diagonal thermostat driven by each coordinate's square, a scalar one by their mean."""
    if isinstance(thermostat, dict):
        return tree.map(lambda zeta, m: half_step(zeta, m**2), thermostat, momentum)
    total = torch.stack([(m**2).sum() for m in momentum.values()]).sum()
    return half_step(thermostat, total / tree.size(momentum))
