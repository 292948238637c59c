r"""Mean-field variational inference: a normal of independent coordinates, by reparametrised gradients.

With $\theta = \mu + \sigma z$, averaged over several z (`reparametrised.py`),

$$a = \sigma \nabla \log p(\theta), \quad b = a z + T, \qquad \text{or} \qquad
a = \sigma \nabla \log p(\theta) + T z, \quad b = a z$$

without the score of q, which is `stick_the_landing`; and then, by Adam with $\delta = 1$,

$$\mu' = \mu + \epsilon \sigma \, \mathrm{Adam}(a), \qquad
\log \sigma' = \log \sigma + \epsilon \, \mathrm{Adam}(b / 2).$$

A step does not depend on the units of the coordinates.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from pyro_scale import tree
from pyro_scale.gaussians import DiagonalGaussian
from pyro_scale.kernels import adam
from pyro_scale.kernels.reparametrised import DAMPING, DECAYS, check, check_scale, gradients, noise_shape, objective
from pyro_scale.schedules import check_number
from pyro_scale.types import BoundKernel, Fitting, Info, LogPosterior, Noise, Position, Schedule, Settings


@dataclass(frozen=True)
class DiagonalVI:
    """Settings of mean-field variational inference.

    Args:
        step_size: epsilon, a step in standard deviations of q: a number or schedule; > 0. None is `default_step_size`,
            which falls to 0 along half a cosine, from a start at a mode.
        num_particles: draws of q that the gradient of a step averages; >= 1.
        stick_the_landing: whether the gradient leaves out the score of q, whose mean is 0.
        temperature: 1 is the evidence lower bound; below 1 q is narrower, at 0 without end; a number or schedule; >= 0.
        initial_sd: sds of q at the start, in unconstrained coordinates: a number, or a tree by site; > 0. None is what
            the curvature at the mode says, or `num_data**-0.5` with a step_size of one's own: from too wide a start
            Adam is slow for long.

    Raises:
        ArgumentError: a setting or num_data is out of its range or not a number.

    Example:
        >>> bound = DiagonalVI(step_size=0.1).bind(lambda position, batch: -position["x"] ** 2 / 2, num_data=1)
        >>> state = bound.init({"x": torch.tensor(0.0)}, ())
        >>> bound.approximation(state)
        DiagonalGaussian(mean={'x': tensor(0.)}, sd={'x': tensor(1.)})
    """

    default_step_size: ClassVar[float] = 0.05

    step_size: float | Schedule | None = None
    num_particles: int = 1
    stick_the_landing: bool = True
    temperature: float | Schedule = 1.0
    initial_sd: float | Position | None = None

    def __post_init__(self) -> None:
        check(self)
        check_scale("DiagonalVI", self.initial_sd)

    def fitting(self, num_chains: int) -> Fitting:
        """One normal, around the mode."""
        return Fitting(from_mode=True, local=True)

    def at_mode(self, curvature: Tensor, like: Position) -> DiagonalVI:
        """Starts with the sds that are right for a normal posterior of this curvature, `(d, d)` or its diagonal."""
        if self.initial_sd is not None:
            return self
        diagonal = curvature if curvature.ndim == 1 else curvature.diagonal()
        return replace(self, initial_sd=tree.unravel(diagonal.rsqrt(), tree.shapes(like)))

    def bind(self, target: LogPosterior, num_data: int) -> BoundKernel:
        """Joins the settings to a target over `num_data` rows."""
        check_number("DiagonalVI", "num_data", num_data, positive=True)
        initial_sd = num_data**-0.5 if self.initial_sd is None else self.initial_sd
        return BoundKernel(
            partial(noise_shape, self.num_particles),
            partial(init, initial_sd),
            partial(update, target, self.stick_the_landing),
            approximation,
        )


class DiagonalVIState(NamedTuple):
    """Mean and log standard deviation of q, and what Adam remembers of each."""

    position: Position
    log_sd: Position
    mean_moments: adam.Moments
    sd_moments: adam.Moments
    num_steps: Tensor


def approximation(state: DiagonalVIState) -> DiagonalGaussian:
    """q."""
    return DiagonalGaussian(state.position, tree.map(torch.exp, state.log_sd))


def init(initial_sd: float | Position, position: Position, noise: Noise) -> DiagonalVIState:
    """Starts around a position; the noise is not used."""
    first = next(iter(position.values()))
    log_sd = tree.map(torch.log, tree.full_like(position, initial_sd))
    none, num_steps = adam.no_moments(position), torch.zeros((), dtype=torch.long, device=first.device)
    return DiagonalVIState(position, log_sd, none, adam.no_moments(position), num_steps)


def update(
    target: LogPosterior,
    stick_the_landing: bool,
    state: DiagonalVIState,
    batch: Any,
    noise: Position,
    settings: Settings,
) -> tuple[DiagonalVIState, Info]:
    """One step, by the equations at the top of this file."""
    q, temperature, num_steps = approximation(state), settings.temperature, state.num_steps + 1
    slopes, values = gradients(target, q.transform(noise), batch)
    slopes = q.spread(slopes)
    if stick_the_landing:
        slopes = tree.map(lambda slope, z: slope + temperature * z, slopes, noise)
    own = 0.0 if stick_the_landing else temperature
    along_sd = tree.map(lambda slope, z: ((slope * z).mean(0) + own) / 2, slopes, noise)
    along_mean = tree.map(lambda slope: slope.mean(0), slopes)
    ahead, mean_moments = adam.direction(along_mean, *state.mean_moments, num_steps, DAMPING, DECAYS)
    wider, sd_moments = adam.direction(along_sd, *state.sd_moments, num_steps, DAMPING, DECAYS)
    rate = settings.step_size
    position = tree.map(lambda x, sd, step: (x + rate * sd * step).to(x.dtype), state.position, q.sd, ahead)
    log_sd = tree.map(lambda x, step: (x + rate * step).to(x.dtype), state.log_sd, wider)
    value = objective(values, noise, q.log_det, temperature)
    if local := getattr(target, "local", ()):  # the rows of a batch stand for all, in the entropy too
        mean, sd, z = ({name: part[name] for name in local} for part in (q.mean, q.sd, noise))
        entropy = objective(torch.zeros_like(values), z, DiagonalGaussian(mean, sd).log_det, temperature)
        value = value + (batch.scale - 1) * entropy
    return DiagonalVIState(position, log_sd, mean_moments, sd_moments, num_steps), Info(
        value, torch.zeros_like(num_steps)
    )
