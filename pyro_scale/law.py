r"""The law that a kernel samples at a finite step size where the posterior is normal: exact, from one of its steps.

On a normal target one step is affine, $s' = A s + b \xi + c \eta$, where s is position and momentum, $\xi$ the
injected noise and $\eta$ what a minibatch adds to the gradient. Feeding 0 and 1 to the kernel gives A, b and c; the
stationary covariance solves $S = A S A^\top + b b^\top$, and the response of a position to one $\eta$, $k$ steps
later, is $r_k = (A^k c)_1$. Whatever else a state holds, as a thermostat, stands still at what it starts from.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_scale.types import Kernel, Position, Settings

MOVING = ("position", "momentum")
"""Fields of a state that move; all others stand still."""
MOST_LAGS = 200_000


class Law(NamedTuple):
    """Of one coordinate whose posterior is normal, in units of its own standard deviation.

    Attributes:
        sd: that of the draws, relative to the posterior's; infinite where a step is not stable.
        momentum_sd: the same of momenta, relative to that at step size 0; NaN without momenta.
        autocorrelation_time: steps that bring one independent draw of the mean; at least 1.
        response: of a position to a unit of gradient per datum, by lag, `(num_lags,)`.
        momentum_response: the same of a momentum; empty without momenta.
    """

    sd: float
    momentum_sd: float
    autocorrelation_time: float
    response: Tensor
    momentum_response: Tensor


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
    # LAPACK ends the process where numbers are not finite
    if not transition.isfinite().all() or float(torch.linalg.eigvals(transition).abs().max()) >= 1:
        none = torch.zeros(0, dtype=torch.float64)
        return Law(torch.inf, torch.inf, torch.inf, none, none)
    covariance = _stationary(transition, torch.outer(injected, injected))
    relative = (covariance.diagonal() / temperature).clamp(min=0).sqrt()
    total = 2 * torch.linalg.solve(basis - transition, covariance)[0, 0] - covariance[0, 0]
    response = _response(transition, pushed)
    return Law(
        sd=float(relative[0]) * curvature**0.5,
        momentum_sd=float(relative[1]) if len(moving) > 1 else torch.nan,
        autocorrelation_time=max(1.0, float(total / covariance[0, 0])) if covariance[0, 0] > 0 else torch.inf,
        response=response[0],
        momentum_response=response[1] if len(moving) > 1 else response[0, :0],
    )


def noise_gain(response: Tensor, batches_per_epoch: float, uneven: float = 0.0) -> float:
    """Variance that minibatches add, per unit of gradient variance, to what responds so: see `law_of`.

    Minibatches without replacement cut a permutation of the rows in pieces: within it their noise sums to 0, and
    what follows it slowly, over many permutations, sees none of it.

    Args:
        response: by lag.
        batches_per_epoch: N / n; infinity for rows drawn with replacement.
        uneven: variance, relative to that of a minibatch, of what an epoch's noise sums to where it does not sum to 0.
    """
    white = float(response.square().sum())
    if batches_per_epoch <= 1:
        return 0.0
    if batches_per_epoch == float("inf"):
        return (1 + uneven) * white
    length = 2 * len(response)
    spectrum = torch.fft.rfft(response, length)
    autocovariance = torch.fft.irfft(spectrum.abs() ** 2, length)[: len(response)]
    lags = torch.arange(1, len(response), dtype=response.dtype)
    same = (1 - lags / batches_per_epoch).clamp(min=0)  # how often two steps so far apart are in one permutation
    cancelled = 2 * float(same @ autocovariance[1:]) / (batches_per_epoch - 1)
    return max(0.0, white - cancelled) + uneven * white


def _stationary(transition: Tensor, added: Tensor) -> Tensor:
    """Solves S = A S A' + Q."""
    size = len(added)
    system = torch.eye(size**2, dtype=added.dtype) - torch.kron(transition, transition)
    solution: Tensor = torch.linalg.solve(system, added.reshape(-1)).reshape(size, size)
    return solution


def _response(transition: Tensor, pushed: Tensor) -> Tensor:
    """A^k c for k = 0, 1, ... until it has died away, `(state, num_lags)`."""
    found, power = pushed.unsqueeze(1), transition
    while found.shape[1] < MOST_LAGS and float(found[:, -1].abs().max()) > 1e-6 * float(found.abs().max()):
        found, power = torch.cat([found, power @ found], 1), power @ power
    return found
