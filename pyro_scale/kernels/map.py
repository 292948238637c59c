r"""Maximum a posteriori: a climb to a mode of the log posterior of the unconstrained position, by Adam.

With $g = \nabla \log p(\theta \mid \text{batch}) / N$,

$$\theta' = \theta + \epsilon \, \mathrm{Adam}(g),$$

which is `torch.optim.Adam(lr=step_size)` on `-log_posterior / num_data`. Without the prior it climbs to a maximum of
the likelihood. There is no temperature: it would leave the mode where it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from pyro_scale import tree
from pyro_scale.derivative import grad_and_value
from pyro_scale.kernels import adam
from pyro_scale.schedules import as_schedule, check_number
from pyro_scale.types import BoundKernel, Fitting, Info, LogPosterior, Noise, Position, Schedule, Settings, Shapes


@dataclass(frozen=True)
class MAP:
    """Settings of a climb to the mode.

    Args:
        step_size: epsilon, Adam's learning rate, in units of the unconstrained coordinates: a number or schedule; > 0.
            None: up to 300 coordinates Newton's method finds the mode; elsewhere `default_step_size`, which falls to 0
            along half a cosine, so that minibatches do not keep the position from settling.
        prior: whether the prior counts; without it the result is a maximum of the likelihood.

    Raises:
        ArgumentError: a setting or num_data is negative, NaN or not a number.

    Example:
        >>> bound = MAP(step_size=0.1).bind(lambda position, batch: -position["x"] ** 2, num_data=1)
        >>> state = bound.init({"x": torch.tensor(1.0)}, ())
        >>> state, info = bound.update(state, None, (), Settings(0.1, 1.0))
        >>> state.position["x"]
        tensor(0.9000)
    """

    default_step_size: ClassVar[float] = 0.02
    temperature: ClassVar[float] = 1.0

    step_size: float | Schedule | None = None
    prior: bool = True

    def __post_init__(self) -> None:
        if self.step_size is not None:
            as_schedule("MAP", "step_size", self.step_size, positive=True)

    def fitting(self, num_chains: int) -> Fitting:
        """One climb, over at the mode."""
        return Fitting(from_mode=True, done_at_mode=True)

    def objective(self, target: Any) -> LogPosterior:
        """What is climbed, as a function of position and batch."""
        return target if self.prior else partial(log_likelihood, target)

    def bind(self, target: LogPosterior, num_data: int) -> BoundKernel:
        """Joins the settings to a target over `num_data` rows."""
        check_number("MAP", "num_data", num_data, positive=True)
        return BoundKernel(noise_shape, init, partial(update, self.objective(target), num_data))


class MAPState(NamedTuple):
    """Position, and what Adam remembers."""

    position: Position
    moments: adam.Moments
    num_steps: Tensor


def log_likelihood(target: Any, position: Position, batch: Any) -> Tensor:
    """Estimate of the log-likelihood of all rows, in nats; 0-d."""
    terms = [values.sum() for values in target.log_likelihood(position, batch).values()]
    total: Tensor = batch.scale * torch.stack(terms).sum()
    return total


def noise_shape(position: Position) -> Shapes:
    """None is taken."""
    return {}


def init(position: Position, noise: Noise) -> MAPState:
    """Starts at a position; the noise is not used."""
    first = next(iter(position.values()))
    return MAPState(position, adam.no_moments(position), torch.zeros((), dtype=torch.long, device=first.device))


def update(
    objective: LogPosterior, num_data: int, state: MAPState, batch: Any, noise: Noise, settings: Settings
) -> tuple[MAPState, Info]:
    """One step, by the equation at the top of this file."""
    gradient, value = grad_and_value(objective)(state.position, batch)
    num_steps = state.num_steps + 1
    ahead, moments = adam.direction(tree.scale(gradient, 1 / num_data), *state.moments, num_steps)
    position = tree.map(lambda x, step: (x + settings.step_size * step).to(x.dtype), state.position, ahead)
    return MAPState(position, moments, num_steps), Info(value, torch.zeros_like(num_steps))
