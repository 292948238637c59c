r"""The law that a kernel samples at a finite step size where the posterior is normal: exact, from one of its steps.

On a normal target one step is affine, $s' = A s + b \xi + c \eta$, where s is position and momentum, $\xi$ the
injected noise and $\eta$ what a minibatch adds to the gradient. Feeding 0 and 1 to the kernel gives A, b and c; the
stationary covariance solves $S = A S A^\top + b b^\top$, and the response of a position to one $\eta$, $k$ steps
later, is $r_k = (A^k c)_1$. Whatever else a state holds, as a thermostat, stands still at what it starts from.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_scale import tree
from pyro_scale.types import Kernel, Position, Settings

MOVING = ("position", "momentum")
"""Fields of a state that move; all others stand still."""
MOST_LAGS = 10_000
LARGEST, SMALLEST = 0.5, 1e-4
"""Step sizes that are looked at, in coordinates of curvature 1."""
MOST_NOISE = 0.2
"""Minibatches may add so much to the variance of draws, before it is taken out of the injected noise."""


class Law(NamedTuple):
    """Of one coordinate whose posterior is normal, in units of its own standard deviation.

    Attributes:
        sd: that of the draws, relative to the posterior's; infinite where a step is not stable.
        momentum_sd: the same of momenta, relative to that at step size 0; NaN without momenta.
        autocorrelation_time: steps that bring one independent draw of the mean; at least 1.
        response: of a position to a unit of gradient per datum, by lag, `(num_lags,)`.
    """

    sd: float
    momentum_sd: float
    autocorrelation_time: float
    response: Tensor


def law_of(kernel: Kernel, step_size: float, curvature: float = 1.0) -> Law:
    """The law of a kernel on a normal posterior.

    Args:
        kernel: whose other settings hold; its temperature must be above 0 at the first step.
        step_size: per datum.
        curvature: per datum, of the negative log posterior.

    Example:
        >>> from pyro_scale.kernels import SGLD
        >>> round(law_of(SGLD(), 0.1).sd ** 2, 4)  # 1 / (1 - 0.1 / 2)
        1.0526
    """

    def target(position: Position, batch: Tensor) -> Tensor:
        x = position["x"]
        return batch * x - curvature * x**2 / 2

    bound = kernel.bind(target, 1)
    zero = torch.zeros((), dtype=torch.float64)
    start = bound.init({"x": zero}, {"x": zero})
    moving = [name for name in MOVING if name in type(start)._fields]
    temperature = kernel.temperature(0) if callable(kernel.temperature) else kernel.temperature
    settings = Settings(*torch.tensor([step_size, temperature, 0.0], dtype=torch.float64))

    def step(values: Tensor, noise: Tensor, gradient: Tensor) -> Tensor:
        state = start._replace(**{name: {"x": value} for name, value in zip(moving, values, strict=True)})
        after, _ = bound.update(state, gradient, {"x": noise}, settings)
        return torch.stack([getattr(after, name)["x"] for name in moving])

    basis = torch.eye(len(moving), dtype=torch.float64)
    still, one = torch.zeros(len(moving), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    transition = torch.stack([step(each, zero, zero) for each in basis], 1)
    injected, pushed = step(still, one, zero), step(still, zero, one)
    if float(torch.linalg.eigvals(transition).abs().max()) >= 1:
        return Law(torch.inf, torch.inf, torch.inf, torch.zeros(0, dtype=torch.float64))
    covariance = _stationary(transition, torch.outer(injected, injected))
    relative = (covariance.diagonal() / temperature).clamp(min=0).sqrt()
    total = 2 * torch.linalg.solve(basis - transition, covariance)[0, 0] - covariance[0, 0]
    return Law(
        sd=float(relative[0]) * curvature**0.5,
        momentum_sd=float(relative[1]) if len(moving) > 1 else torch.nan,
        autocorrelation_time=max(1.0, float(total / covariance[0, 0])) if covariance[0, 0] > 0 else torch.inf,
        response=_response(transition, pushed),
    )


def noise_gain(response: Tensor, batches_per_epoch: float) -> float:
    """Variance of positions that minibatches add, per unit of gradient variance: `law_of` gives the response.

    Minibatches without replacement cut a permutation of the rows in pieces: within it their noise sums to 0, and
    what follows it slowly, over many permutations, sees none of it.

    Args:
        response: by lag.
        batches_per_epoch: N / n; infinity for rows drawn with replacement.
    """
    white = float(response.square().sum())
    if batches_per_epoch <= 1:
        return 0.0
    if batches_per_epoch == float("inf"):
        return white
    length = 2 * len(response)
    spectrum = torch.fft.rfft(response, length)
    autocovariance = torch.fft.irfft(spectrum.abs() ** 2, length)[: len(response)]
    lags = torch.arange(1, len(response), dtype=response.dtype)
    same = (1 - lags / batches_per_epoch).clamp(min=0)  # how often two steps so far apart are in one permutation
    return max(0.0, white - 2 * float(same @ autocovariance[1:]) / (batches_per_epoch - 1))


def largest_step(
    kernel: Kernel,
    tolerance: float,
    curvature: float,
    noise: float,
    batches_per_epoch: float,
    limit: float,
    most_noise: float = MOST_NOISE,
) -> float:
    """The largest step size, to 5 per cent, at which the sds of a normal posterior are right within a tolerance.

    Args:
        kernel: whose step size is looked for.
        tolerance: of the sd, relative to itself.
        curvature: per datum, at the hardest place that chains come to.
        noise: V, relative to temperature / num_data. Kernels without a `gradient_variance` are to absorb it by
            themselves, which they do while it is small beside 1 / step_size**2.
        batches_per_epoch: N / n.
        limit: the largest that comes into question.
        most_noise: that minibatches may add to the variance of draws, before it is taken out of the injected noise.
    """

    def suits(step_size: float) -> bool:
        if not abs(law_of(kernel, step_size, curvature).sd - 1) <= tolerance:
            return False
        if not hasattr(kernel, "gradient_variance"):
            return step_size**2 * noise <= most_noise
        return noise == 0 or noise * noise_gain(law_of(kernel, step_size).response, batches_per_epoch) <= most_noise

    low, high = min(SMALLEST, limit), limit
    if suits(high):
        return high
    while high > 1.05 * low:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if suits(middle) else (low, middle)
    return low


class Suited(NamedTuple):
    """A kernel with the step size that suits a posterior.

    Attributes:
        kernel: with V where it takes one.
        law: that it has at curvature 1.
        noise: V, relative to temperature / num_data.
    """

    kernel: Any
    law: Law
    noise: float


def suited(
    kernel: Any,
    tolerance: float,
    curvature: float,
    variance: Position,
    noise: float,
    batches_per_epoch: float,
    limit: float,
    most_noise: float,
) -> Suited:
    """A kernel with the largest step size that suits, and with what minibatches add taken out of the injected noise.

    Args:
        kernel, tolerance, curvature, noise, batches_per_epoch, limit, most_noise: as `largest_step` takes them.
        variance: V of every coordinate; {} for none.
    """
    step_size = largest_step(kernel, tolerance, curvature, noise, batches_per_epoch, limit, most_noise)
    law, chosen = law_of(kernel, step_size), replace(kernel, step_size=step_size)
    if variance and hasattr(kernel, "gradient_variance"):
        share = noise_gain(law.response, batches_per_epoch) / noise_gain(law.response, math.inf)
        chosen = replace(chosen, gradient_variance=tree.scale(variance, share))
    return Suited(chosen, law, noise)


def _stationary(transition: Tensor, added: Tensor) -> Tensor:
    """Solves S = A S A' + Q."""
    size = len(added)
    system = torch.eye(size**2, dtype=added.dtype) - torch.kron(transition, transition)
    solution: Tensor = torch.linalg.solve(system, added.reshape(-1)).reshape(size, size)
    return solution


def _response(transition: Tensor, pushed: Tensor) -> Tensor:
    """The first entry of A^k c for k = 0, 1, ... until it has died away."""
    found, power = pushed.unsqueeze(1), transition
    while found.shape[1] < MOST_LAGS and float(found[:, -1].abs().max()) > 1e-6 * float(found.abs().max()):
        found, power = torch.cat([found, power @ found], 1), power @ power
    result: Tensor = found[0]
    return result
