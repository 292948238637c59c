r"""Stein variational gradient descent: Liu & Wang (2016), algorithm 1, with a kernel of the median's width.

Each of n particles moves along

$$\phi_i = \frac1n \sum_j k(x_j, x_i) \nabla \log p(x_j) + T \, \nabla_{x_j} k(x_j, x_i), \qquad
k(x, x') = \exp(-\|x - x'\|^2 / h), \quad h = \mathrm{med}^2 / \log n,$$

where med is the median of the distances between particles: $x_i' = x_i + \epsilon \, \mathrm{Adam}(\phi_i)$. The first
term draws particles to where the density is high, the second drives them apart. One particle climbs to the mode, and so
do all at temperature T = 0, if from other starts. With fewer particles than some per coordinate they lie too close, of
which the check "sd error, by gradients" tells.

References:
    Liu & Wang (2016), Stein variational gradient descent: a general purpose Bayesian inference algorithm, NeurIPS.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from pyro_scale import tree
from pyro_scale.checks import check_count
from pyro_scale.kernels import adam
from pyro_scale.kernels.noise import no_noise
from pyro_scale.kernels.reparametrised import gradients
from pyro_scale.schedules import as_schedule, check_number
from pyro_scale.types import BoundKernel, Fitting, Info, LogPosterior, Noise, Position, Schedule, Settings


@dataclass(frozen=True)
class SVGD:
    """Settings of Stein variational gradient descent.

    Args:
        step_size: epsilon, Adam's learning rate, in units of the unconstrained coordinates: a number or schedule; > 0.
            None is `default_step_size`, which falls to 0 along half a cosine, in coordinates whitened at a mode, where
            the particles start as draws of the normal there.
        num_particles: n, the draws of the posterior; >= 1.
        temperature: 1 is the posterior, below 1 a cold one; a number or schedule; >= 0.

    Raises:
        ArgumentError: a setting or num_data is out of its range or not a number.

    Example:
        >>> bound = SVGD(step_size=0.1, num_particles=2).bind(lambda at, batch: -at["x"] ** 2 / 2, num_data=1)
        >>> state = bound.init({"x": torch.tensor([-0.1, 0.1])}, ())
        >>> state, info = bound.update(state, None, (), Settings(0.1, 1.0))
        >>> state.position["x"]  # apart
        tensor([-0.2000,  0.2000])
    """

    default_step_size: ClassVar[float] = 0.1

    step_size: float | Schedule | None = None
    num_particles: int = 100
    temperature: float | Schedule = 1.0

    def __post_init__(self) -> None:
        if self.step_size is not None:
            as_schedule("SVGD", "step_size", self.step_size, positive=True)
        check_count("SVGD: num_particles", self.num_particles, 1)
        as_schedule("SVGD", "temperature", self.temperature)

    def fitting(self, num_chains: int) -> Fitting:
        """One cloud of particles."""
        return Fitting(num_particles=self.num_particles, from_mode=True, whitened=True)

    def bind(self, target: LogPosterior, num_data: int) -> BoundKernel:
        """Joins the settings to a target over `num_data` rows; positions have the particles as their leading axis."""
        check_number("SVGD", "num_data", num_data, positive=True)
        return BoundKernel(no_noise, init, partial(update, target))


class SVGDState(NamedTuple):
    """Particles, `(num_particles, *site)`, and what Adam remembers."""

    position: Position
    moments: adam.Moments
    num_steps: Tensor


def init(position: Position, noise: Noise) -> SVGDState:
    """Starts at particles; the noise is not used."""
    first = next(iter(position.values()))
    return SVGDState(position, adam.no_moments(position), torch.zeros((), dtype=torch.long, device=first.device))


def stein(particles: Tensor, slopes: Tensor, temperature: Any) -> Tensor:
    """phi of particles `(n, d)`, from gradients of the log posterior at each."""
    number = len(particles)
    apart = particles.unsqueeze(1) - particles.unsqueeze(0)
    squares = apart.square().sum(-1)
    between = torch.ones_like(squares).triu(1).to(torch.bool)
    # sorted, and the middle one taken: a median of what a mask leaves would have a size that depends on values
    ordered = torch.where(between, squares, torch.full_like(squares, math.inf)).flatten().sort().values
    pairs = number * (number - 1) // 2
    width = (ordered[pairs // 2] / math.log(number)).clamp(min=1e-12) if number > 1 else squares.new_ones(())
    kernel = torch.exp(-squares / width)
    repulsion = 2 / width * (kernel.sum(1, keepdim=True) * particles - kernel @ particles)
    phi: Tensor = (kernel @ slopes + temperature * repulsion) / number
    return phi


def update(
    target: LogPosterior, state: SVGDState, batch: Any, noise: Noise, settings: Settings
) -> tuple[SVGDState, Info]:
    """One step, by the equations at the top of this file."""
    found, values = gradients(target, state.position, batch)
    shapes = {name: leaf.shape[1:] for name, leaf in state.position.items()}
    phi = stein(tree.flat(state.position, shapes), tree.flat(found, shapes), settings.temperature)
    num_steps = state.num_steps + 1
    ahead, moments = adam.direction(tree.unravel(phi, shapes), *state.moments, num_steps)
    position = tree.map(lambda x, step: (x + settings.step_size * step).to(x.dtype), state.position, ahead)
    return SVGDState(position, moments, num_steps), Info(values.mean(), torch.zeros_like(num_steps))
