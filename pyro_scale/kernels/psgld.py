r"""Preconditioned stochastic gradient Langevin dynamics: Li et al. (2016), algorithm 1, the preconditioner then frozen.

With $g = \nabla \log p(\theta \mid \text{batch}) / N$ and $T = \text{temperature} / N$,

$$\theta' = \theta + \epsilon P g + \sqrt{\max(0, 2 \epsilon T P - \epsilon^2 P^2 V)} \, \xi, \qquad
P = \frac{1 + \lambda}{\sqrt s + \lambda}, \qquad s = v \frac{\sum w}{\sum v} + 1 - w,$$

where V is the variance of g over minibatches. While the runner says that the chain warms up, before each step,

$$v \leftarrow \alpha v + (1 - \alpha) g^2, \qquad w \leftarrow \alpha w + 1 - \alpha,$$

from 0; the sums are over all coordinates. After warm-up P is constant, so that the target is
kept without the paper's term $\Gamma$, the divergence of a P that follows the position.

Only the relative sizes of gradients enter P: a coordinate of average size has P near 1, so that step sizes mean what
they mean for SGLD, whatever N and the scale of the gradient. The weight w is what bias correction divides by, the same
everywhere but for values of rows, which only batches that hold them move; what it lacks to 1 is the identity's: P is
the identity at the start, and near it after a warm-up much shorter than 1 / (1 - alpha) steps. It is frozen where the
chain stands and not independent of that place: the first draws after warm-up forget it as chains forget a start.

Temperature 0 without warm-up is `torch.optim.SGD(lr=step_size)` on `-log_posterior / num_data`; with it, the same
with P times that rate in each coordinate.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from pyro_scale import tree
from pyro_scale.derivative import grad_and_value
from pyro_scale.kernels.noise import check_variance, injected_sd, noise_shape
from pyro_scale.schedules import as_schedule, check_number
from pyro_scale.types import BoundKernel, Info, LogPosterior, Noise, Position, Schedule, Settings


@dataclass(frozen=True)
class PSGLD:
    """Settings of preconditioned stochastic gradient Langevin dynamics.

    Args:
        step_size: epsilon, per datum: a number or schedule; > 0. As SGLD's, for a coordinate whose gradient is of
            average size. None is tuned by warm-up; where that cannot be, it is
            `default_step_size`, which suits covariates of unit scale.
        decay: alpha, the share of the mean square gradient that a step of the warm-up keeps: it averages over about
            1 / (1 - decay) steps; 0 to 1. 1 keeps the identity, which is SGLD. With all rows at every step, gradients
            of neighbouring steps are alike and 0.999 averages better.
        damping: lambda, relative to the root of the mean square gradient of all coordinates; > 0. It limits the
            preconditioner to (1 + damping) / damping.
        temperature: 1 is the Bayesian posterior, below 1 a cold one, 0 preconditioned gradient descent; a number or
            schedule; >= 0.
        gradient_variance: V, variance over minibatches of the gradient divided by num_data, subtracted from the
            injected noise; a number for all coordinates, or a tensor a site; >= 0.

    Raises:
        ArgumentError: a setting or num_data is negative, NaN or not a number, or decay above 1.

    Example:
        >>> kernel = PSGLD(step_size=0.1, temperature=0.0)
        >>> bound = kernel.bind(lambda position, batch: -position["x"] ** 2, num_data=1)
        >>> state = bound.init({"x": torch.tensor(1.0)}, ())
        >>> state, info = bound.update(state, None, {"x": torch.tensor(0.0)}, Settings(0.1, 0.0))
        >>> state.position["x"]
        tensor(0.8000)

    References:
        Li, Chen, Carlson & Carin (2016), Preconditioned stochastic gradient Langevin dynamics for deep neural
        networks, AAAI.
    """

    default_step_size: ClassVar[float] = 0.01

    step_size: float | Schedule | None = None
    decay: float = 0.99
    damping: float = 1e-3
    temperature: float | Schedule = 1.0
    gradient_variance: float | Position = 0.0

    def __post_init__(self) -> None:
        if self.step_size is not None:
            as_schedule("PSGLD", "step_size", self.step_size, positive=True)
        check_number("PSGLD", "decay", self.decay, below=1.0)
        check_number("PSGLD", "damping", self.damping, positive=True)
        as_schedule("PSGLD", "temperature", self.temperature)
        check_variance("PSGLD", self.gradient_variance)

    def bind(self, target: LogPosterior, num_data: int) -> BoundKernel:
        """Joins the settings to a target over `num_data` rows."""
        check_number("PSGLD", "num_data", num_data, positive=True)
        step = partial(
            update,
            target,
            num_data,
            decay=self.decay,
            damping=self.damping,
            gradient_variance=self.gradient_variance,
        )
        return BoundKernel(noise_shape=partial(noise_shape, "PSGLD", self.gradient_variance), init=init, update=step)


class PSGLDState(NamedTuple):
    """Position of the chain, and the mean square of its gradients per datum with the weight they sum up to."""

    position: Position
    mean_square: Position
    weight: Position


def init(position: Position, noise: Noise) -> PSGLDState:
    """Starts at a position with the identity as preconditioner; the noise is not used."""
    return PSGLDState(position, tree.map(torch.zeros_like, position), tree.map(torch.zeros_like, position))


def preconditioner(mean_square: Position, weight: Position, damping: float) -> Position:
    """P, by the equations at the top of this file; the identity while all gradients are 0."""
    squares, weights = (torch.stack([leaf.sum() for leaf in each.values()]).sum() for each in (mean_square, weight))
    known = squares > 0
    mean = torch.where(known, squares / torch.where(known, weights, 1.0), 1.0)

    def scaling(v: Tensor, w: Tensor) -> Tensor:
        relative = torch.where(known, v / mean + 1 - w, 1.0)
        return (1 + damping) / (relative.sqrt() + damping)

    return tree.map(scaling, mean_square, weight)


def update(
    target: LogPosterior,
    num_data: int,
    state: PSGLDState,
    batch: Any,
    noise: Position,
    settings: Settings,
    *,
    decay: float = 0.99,
    damping: float = 1e-3,
    gradient_variance: float | Position = 0.0,
) -> tuple[PSGLDState, Info]:
    """One step, by the equations at the top of this file."""
    gradient, log_posterior = grad_and_value(target)(state.position, batch)
    step_size = settings.step_size
    pace = (1 - decay) * settings.adapting  # 0 leaves the averages as they are, bit for bit
    mean_square = tree.map(lambda v, g: (v + pace * ((g / num_data) ** 2 - v)).to(v.dtype), state.mean_square, gradient)
    weight = tree.map(lambda w: (w + pace * (1 - w)).to(w.dtype), state.weight)
    scaling = preconditioner(mean_square, weight, damping)
    known = gradient_variance if isinstance(gradient_variance, dict) or gradient_variance else None
    share = 0.0 if known is None else tree.map(torch.mul, scaling, tree.full_like(scaling, known))
    sd, clamped = injected_sd(2 * step_size * settings.temperature / num_data, step_size, share, noise)
    position = tree.map(
        lambda x, p, g, s, z: (x + step_size / num_data * p * g + p.sqrt() * (s * z)).to(x.dtype),
        state.position,
        scaling,
        gradient,
        sd,
        noise,
    )
    return PSGLDState(position, mean_square, weight), Info(log_posterior, clamped)
