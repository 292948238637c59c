r"""Mean-field variational inference: a normal of independent coordinates, by reparametrised gradients.

The normal $q = N(\mu, \mathrm{diag}(\sigma^2))$ maximises $E_q[\log p(\theta)] - T E_q[\log q(\theta)]$, at temperature
T = 1 the evidence lower bound of Kucukelbir et al. (2017), equation 5, which is at most the log evidence. With standard
normals z and $\theta = \mu + \sigma z$, the derivative along $\mu$ in units of $\sigma$, and along $\log \sigma$, is

$$a = \sigma \nabla \log p(\theta), \qquad b = a z + T,$$

averaged over several z; with `stick_the_landing`, Roeder, Wu & Duvenaud (2017), section 3, it is

$$a = \sigma \nabla \log p(\theta) + T z, \qquad b = a z,$$

whose mean is the same and whose variance vanishes where q is the posterior. Both go through Adam:

$$\mu' = \mu + \epsilon \sigma \, \mathrm{Adam}(a), \qquad \log \sigma' = \log \sigma + \epsilon \, \mathrm{Adam}(b),$$

so that a step does not depend on the units of the coordinates.

References:
    Kucukelbir, Tran, Ranganath, Gelman & Blei (2017), Automatic differentiation variational inference, JMLR.
    Roeder, Wu & Duvenaud (2017), Sticking the landing: simple, lower-variance gradient estimators for variational
    inference, NeurIPS.
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
from pyro_scale.kernels.reparametrised import Estimate, estimate, noise_shape
from pyro_scale.schedules import as_schedule, check_number
from pyro_scale.types import BoundKernel, Fitting, Info, LogPosterior, Noise, Position, Schedule, Settings


@dataclass(frozen=True)
class DiagonalVI:
    """Settings of mean-field variational inference.

    Args:
        step_size: epsilon, Adam's learning rate, in standard deviations of q: a number or schedule; > 0. None is
            `default_step_size`, which falls to 0 along half a cosine.
        num_particles: draws of q that the gradient of a step averages; >= 1.
        stick_the_landing: whether the gradient leaves out the score of q, whose mean is 0.
        temperature: 1 is the evidence lower bound; below 1 q is narrower, and 0 leaves a point, which is never reached.
        initial_sd: sds at the start, in unconstrained coordinates: a number, or a tree by site; > 0. None is the
            curvature's at the mode, where Newton's method finds one (up to 300 coordinates), or `num_data**-0.5`.

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
        if self.step_size is not None:
            as_schedule("DiagonalVI", "step_size", self.step_size, positive=True)
        as_schedule("DiagonalVI", "temperature", self.temperature)

    def fitting(self, num_chains: int) -> Fitting:
        """One normal, around the mode."""
        return Fitting(from_mode=True)

    def at_mode(self, negative_hessian: Tensor, like: Position) -> DiagonalVI:
        """Starts with the sds that are right for a normal posterior of this curvature, `(d, d)`."""
        if self.initial_sd is not None:
            return self
        sds = negative_hessian.diagonal().rsqrt()
        return replace(self, initial_sd=tree.unravel(sds, tree.shapes(like)))

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
    num_steps = torch.zeros((), dtype=torch.long, device=first.device)
    return DiagonalVIState(position, log_sd, adam.no_moments(position), adam.no_moments(position), num_steps)


def update(
    target: LogPosterior,
    stick_the_landing: bool,
    state: DiagonalVIState,
    batch: Any,
    noise: Position,
    settings: Settings,
) -> tuple[DiagonalVIState, Info]:
    """One step, by the equations at the top of this file."""
    gaussian, temperature, num_steps = approximation(state), settings.temperature, state.num_steps + 1
    found: Estimate = estimate(target, gaussian, batch, noise, temperature)
    slopes = gaussian.spread(found.gradients)
    if stick_the_landing:
        slopes = tree.map(lambda slope, z: slope + temperature * z, slopes, noise)
    along_mean = tree.map(lambda slope: slope.mean(0), slopes)
    own = 0.0 if stick_the_landing else temperature
    along_sd = tree.map(lambda slope, z: (slope * z).mean(0) + own, slopes, noise)
    mean_step, mean_moments = adam.direction(along_mean, *state.mean_moments, num_steps)
    sd_step, sd_moments = adam.direction(along_sd, *state.sd_moments, num_steps)
    rate = settings.step_size
    position = tree.map(lambda x, sd, step: (x + rate * sd * step).to(x.dtype), state.position, gaussian.sd, mean_step)
    log_sd = tree.map(lambda x, step: (x + rate * step).to(x.dtype), state.log_sd, sd_step)
    moved = DiagonalVIState(position, log_sd, mean_moments, sd_moments, num_steps)
    return moved, Info(found.objective, torch.zeros_like(num_steps))
