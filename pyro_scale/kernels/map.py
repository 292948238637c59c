r"""Maximum a posteriori: a climb to a mode of the log posterior of the unconstrained position, by Adam.

With $g = \nabla \log p(\theta \mid \text{batch}) / N$,

$$\theta' = \theta + \epsilon \, \mathrm{Adam}(g),$$

which is `torch.optim.Adam(lr=step_size)` on `-log_posterior / num_data`, or any other optimizer on the same. Without
the prior it climbs to a maximum of the likelihood. There is no temperature: it would leave the mode where it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from pyro_scale import tree
from pyro_scale.derivative import grad_and_value
from pyro_scale.errors import ArgumentError
from pyro_scale.kernels import adam
from pyro_scale.kernels.noise import no_noise
from pyro_scale.schedules import as_schedule, check_number
from pyro_scale.types import BoundKernel, Fitting, Info, LogPosterior, Noise, Position, Schedule, Settings


@dataclass(frozen=True)
class MAP:
    """Settings of a climb to the mode.

    Args:
        step_size: epsilon, Adam's learning rate, in units of the unconstrained coordinates: a number or schedule; > 0.
            None: up to 300 coordinates Newton's method finds the mode; elsewhere `default_step_size`, which falls to 0
            along half a cosine, so that minibatches do not keep the position from settling.
        prior: whether the prior counts; without it the result is a maximum of the likelihood.
        optimizer: in place of Adam: a transformation of torchopt, as `torchopt.sgd(lr=0.1, momentum=0.9)`; or a
            function from parameters to an optimizer of torch, as `lambda params: torch.optim.LBFGS(params)`, which runs
            step by step, uncompiled. It has a learning rate of its own: no step_size is taken then, and Newton's method
            not tried.

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
    optimizer: Any = None

    def __post_init__(self) -> None:
        check("MAP", self.step_size, self.prior, self.optimizer)
        if self.optimizer is not None:
            object.__setattr__(self, "step_size", 1.0)  # of the optimizer's own steps

    def fitting(self, num_chains: int) -> Fitting:
        """One climb, over at the mode."""
        own = self.optimizer is None
        return Fitting(from_mode=own, done_at_mode=own, local=own, optimizer=_factory(self.optimizer))

    def objective(self, target: Any) -> LogPosterior:
        """What is climbed, as a function of position and batch."""
        return target if self.prior else partial(all_log_likelihood, target)

    def bind(self, target: LogPosterior, num_data: int) -> BoundKernel:
        """Joins the settings to a target over `num_data` rows."""
        check_number("MAP", "num_data", num_data, positive=True)
        optimizer = self.optimizer if self.optimizer is not None and not callable(self.optimizer) else Adam()
        return BoundKernel(
            no_noise, partial(init, optimizer), partial(update, self.objective(target), num_data, optimizer)
        )


class MAPState(NamedTuple):
    """Position, and what the optimizer remembers."""

    position: Position
    optimizer: Any


class AdamState(NamedTuple):
    """Moments, and steps taken."""

    moments: adam.Moments
    num_steps: Tensor


class Adam(NamedTuple):
    """Adam, called as the transformations of torchopt are, without a learning rate."""

    def init(self, position: Position) -> AdamState:
        """Before the first step."""
        first = next(iter(position.values()))
        return AdamState(adam.no_moments(position), torch.zeros((), dtype=torch.long, device=first.device))

    def update(self, slope: Position, state: AdamState, **options: Any) -> tuple[Position, AdamState]:
        """What to add to the position, against the slope."""
        num_steps = state.num_steps + 1
        uphill, moments = adam.direction(slope, *state.moments, num_steps)
        return tree.scale(uphill, -1.0), AdamState(moments, num_steps)


def check(owner: str, step_size: Any, prior: Any, optimizer: Any) -> None:
    """Checks the settings of a climb."""
    if step_size is not None:
        as_schedule(owner, "step_size", step_size, positive=True)
    if type(prior) is not bool:
        raise ArgumentError(f"{owner}: prior is {prior!r}; it must be True or False.")
    if optimizer is None:
        return
    if step_size not in (None, 1.0):
        raise ArgumentError(
            f"{owner}: step_size is {step_size!r} beside an optimizer, which has a learning rate of its own: give one."
        )
    if isinstance(optimizer, type) or not (callable(optimizer) or hasattr(optimizer, "update")):
        raise ArgumentError(
            f"{owner}: optimizer is {optimizer!r}; it must be a transformation of torchopt, as torchopt.adam(lr=0.01), "
            "or a function of parameters, as lambda params: torch.optim.SGD(params, lr=0.1)."
        )


def _factory(optimizer: Any) -> Callable[[Any], torch.optim.Optimizer] | None:
    return optimizer if callable(optimizer) else None


def log_likelihood(target: Any, position: Position, batch: Any) -> Tensor:
    """Of the rows of the batch, each once, in nats; 0-d."""
    return torch.stack([values.sum() for values in target.log_likelihood(position, batch).values()]).sum()


def all_log_likelihood(target: Any, position: Position, batch: Any) -> Tensor:
    """Estimate of the log-likelihood of all rows, in nats; 0-d."""
    total: Tensor = batch.scale * log_likelihood(target, position, batch)
    return total


def init(optimizer: Any, position: Position, noise: Noise) -> MAPState:
    """Starts at a position; the noise is not used."""
    return MAPState(position, optimizer.init(position))


def update(
    objective: LogPosterior,
    num_data: int,
    optimizer: Any,
    state: MAPState,
    batch: Any,
    noise: Noise,
    settings: Settings,
) -> tuple[MAPState, Info]:
    """One step, by the equation at the top of this file."""
    gradient, value = grad_and_value(objective)(state.position, batch)
    descent = tree.scale(gradient, -1 / num_data)
    moves, after = optimizer.update(descent, state.optimizer, params=state.position, inplace=False)
    position = tree.map(lambda x, move: (x + settings.step_size * move).to(x.dtype), state.position, moves)
    return MAPState(position, after), Info(value, torch.zeros((), dtype=torch.long, device=value.device))
