r"""SWAG: the mean and covariance of the positions that stochastic gradient descent passes near a mode.

Steps $\theta' = \theta + \epsilon g$ with $g = \nabla \log p(\theta \mid \text{batch}) / N$ never settle at a constant
$\epsilon$. Of the positions on the way, Maddox et al. (2019), algorithm 1, the result is

$$q = N\left(\bar\theta, \tfrac12 \mathrm{diag}(s^2) + \tfrac{1}{2 (K - 1)} D D^\top\right),$$

with their mean and variances s^2, here of all steps, and K of their distances from the mean as the columns of D. There
is no temperature: minibatches alone make it as wide as it is.

How wide that is $\epsilon$ decides: Mandt, Hoffman & Blei (2017). In coordinates of curvature 1 per datum a row's
gradient has variance 1 where the model is right, and the step size that is found for `step_size=None` is that at which
its law, with rows drawn in permutations, has the variance 1 / N of the posterior. The check "sd error, by gradients"
tells whether each coordinate is as wide as it is given the others; correlations of the posterior that are lost, and
with them width, it does not see.

References:
    Maddox, Garipov, Izmailov, Vetrov & Wilson (2019), A simple baseline for Bayesian uncertainty in deep learning,
    NeurIPS.
    Mandt, Hoffman & Blei (2017), Stochastic gradient descent as approximate Bayesian inference, JMLR.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from pyro_scale import tree
from pyro_scale.checks import check_count
from pyro_scale.derivative import grad_and_value
from pyro_scale.gaussians import LowRankGaussian
from pyro_scale.kernels.noise import no_noise
from pyro_scale.schedules import as_schedule, check_number
from pyro_scale.types import BoundKernel, Fitting, Info, LogPosterior, Noise, Position, Schedule, Settings


@dataclass(frozen=True)
class SWAG:
    """Settings of SWAG.

    Args:
        step_size: epsilon, per datum: a number or schedule; > 0. None finds it, in coordinates scaled by the curvature
            at the mode.
        rank: K, columns of D; >= 2.
        collect_every: steps from one column to the next; >= 1. None is a pass through the rows with a step size that is
            found, otherwise 10.

    Raises:
        ArgumentError: a setting or num_data is out of its range or not a number.

    Example:
        >>> bound = SWAG(step_size=0.5, rank=2).bind(lambda at, batch: -(at["x"] - batch) ** 2 / 2, num_data=1)
        >>> state = bound.init({"x": torch.tensor(0.0)}, ())
        >>> for batch in (-1.0, 1.0):
        ...     state, info = bound.update(state, batch, (), Settings(0.5, 1.0))
        >>> state.mean["x"]  # of -0.5 and 0.25
        tensor(-0.1250)
    """

    default_step_size: ClassVar[float] = 0.01
    temperature: ClassVar[float] = 1.0

    step_size: float | Schedule | None = None
    rank: int = 20
    collect_every: int | None = None

    def __post_init__(self) -> None:
        if self.step_size is not None:
            as_schedule("SWAG", "step_size", self.step_size, positive=True)
        check_count("SWAG: rank", self.rank, 2)
        if self.collect_every is not None:
            check_count("SWAG: collect_every", self.collect_every, 1)

    def fitting(self, num_chains: int) -> Fitting:
        """One path, from the mode on."""
        return Fitting(from_mode=True, scaled=True, minibatches=True)

    def at_batches(self, batches_per_epoch: float) -> SWAG:
        """With the step size that makes it as wide as a normal posterior, and a column a pass."""
        every = math.ceil(batches_per_epoch) if self.collect_every is None else self.collect_every
        return replace(self, step_size=as_wide(batches_per_epoch), collect_every=every)

    def bind(self, target: LogPosterior, num_data: int) -> BoundKernel:
        """Joins the settings to a target over `num_data` rows."""
        check_number("SWAG", "num_data", num_data, positive=True)
        every = 10 if self.collect_every is None else self.collect_every
        return BoundKernel(
            no_noise, partial(init, self.rank), partial(update, target, num_data, self.rank, every), approximation
        )


class SWAGState(NamedTuple):
    """Position, mean and sum of squared distances so far, the last distances `(rank, *site)`, and steps taken."""

    position: Position
    mean: Position
    squares: Position
    columns: Position
    num_collected: Tensor
    num_steps: Tensor


def as_wide(batches_per_epoch: float) -> float:
    """The step size at which permuted minibatches make positions vary as a normal posterior of curvature 1 per datum.

    Noise of variance 1 / n a step, of which 1 - epsilon is left after the next, adds up to a variance that rises with
    epsilon, less what sums to 0 over a permutation of the rows; see `law.noise_gain`.
    """
    low, high = 0.0, 1.9

    def gain(step_size: float) -> float:
        kept = 1 - step_size
        first = step_size**2 / (1 - kept**2)
        lags = range(1, math.ceil(batches_per_epoch))
        same = sum((1 - lag / batches_per_epoch) * first * kept**lag for lag in lags)
        return first - 2 * same / (batches_per_epoch - 1)

    wanted = 1 / (batches_per_epoch - 1)  # n / (N - n): without replacement a batch's mean varies by less
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if gain(middle) < wanted else (low, middle)
    return high


def approximation(state: SWAGState) -> LowRankGaussian:
    """q."""
    steps, kept = state.num_steps.to(torch.float64).clamp(min=2), state.num_collected.to(torch.float64)
    sd = tree.map(lambda s: (s / (2 * (steps - 1))).sqrt().to(s.dtype), state.squares)
    # a coordinate that no row moves (a pixel that is always 0) stands still: columns are divided by its sd
    limits = torch.finfo(tree.ravel(sd).dtype)
    least = (limits.eps * tree.ravel(sd).max()).clamp(min=limits.tiny)  # all stand still before the second step
    sd = tree.map(lambda leaf: leaf.clamp(min=least), sd)
    rank = len(next(iter(state.columns.values())))
    columns = tree.flat(state.columns, tree.shapes(state.mean)).T
    size = (2 * (kept.clamp(max=rank) - 1).clamp(min=1)).sqrt().to(columns.dtype)
    return LowRankGaussian.of_covariance(state.mean, sd, columns / size)


def init(rank: int, position: Position, noise: Noise) -> SWAGState:
    """Starts at a position; the noise is not used."""
    first = next(iter(position.values()))
    none, zero = tree.map(torch.zeros_like, position), torch.zeros((), dtype=torch.long, device=first.device)
    columns = tree.map(lambda leaf: torch.zeros_like(leaf).expand(rank, *leaf.shape).clone(), position)
    return SWAGState(position, none, tree.map(torch.zeros_like, position), columns, zero, zero.clone())


def update(
    target: LogPosterior,
    num_data: int,
    rank: int,
    collect_every: int,
    state: SWAGState,
    batch: Any,
    noise: Noise,
    settings: Settings,
) -> tuple[SWAGState, Info]:
    """One step, by the equations at the top of this file."""
    gradient, value = grad_and_value(target)(state.position, batch)
    step_size, num_steps = settings.step_size / num_data, state.num_steps + 1
    position = tree.map(lambda x, g: (x + step_size * g).to(x.dtype), state.position, gradient)
    mean = tree.map(lambda m, x: m + (x - m) / num_steps, state.mean, position)
    squares = tree.map(lambda s, x, old, new: s + (x - old) * (x - new), state.squares, position, state.mean, mean)
    collects = num_steps % collect_every == 0
    chosen = (torch.arange(rank, device=num_steps.device) == state.num_collected % rank) & collects

    def replaced(columns: Tensor, x: Tensor, m: Tensor) -> Tensor:
        return torch.where(chosen.reshape(-1, *(1,) * x.ndim), (x - m).unsqueeze(0), columns)

    columns = tree.map(replaced, state.columns, position, mean)
    collected = state.num_collected + collects.to(torch.long)
    after = SWAGState(position, mean, squares, columns, collected, num_steps)
    return after, Info(value, torch.zeros_like(num_steps))
