r"""Variational inference with a covariance that is diagonal plus low rank, by reparametrised gradients.

The covariances are those of Ong, Nott & Smith (2018), in a form that takes as many normals as there are coordinates:
$\theta = \mu + D w$ with $w = (I + U U^\top) z$, a positive diagonal D and few columns U, so that the covariance is
$D (I + U (2 I + U^\top U) U^\top) D$. With $F = D (I + U U^\top)$, averaged over several z (`reparametrised.py`),

$$a = F^\top g, \qquad b = D g \, w, \qquad C = D g (z^\top U) + z (g^\top D U), \qquad g = \nabla \log p(\theta),$$

to which T is added in b, and $2 T U (I + U^\top U)^{-1}$ in C; or, without the score of q (`stick_the_landing`), the
same of $g = \nabla \log p(\theta) + T F^{-\top} z$ and nothing added. Then, by Adam with $\delta = 1$,

$$\mu' = \mu + \epsilon F \, \mathrm{Adam}(a), \qquad \log D' = \log D + \epsilon \, \mathrm{Adam}(b / 2), \qquad
U' = U + \epsilon \, \mathrm{Adam}(C / 2).$$

References:
    Ong, Nott & Smith (2018), Gaussian variational approximation with a factor covariance structure, Journal of
    Computational and Graphical Statistics.
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
from pyro_scale.gaussians import LowRankGaussian
from pyro_scale.kernels import adam
from pyro_scale.kernels.reparametrised import DAMPING, check, check_scale, gradients, noise_shape, objective
from pyro_scale.schedules import check_number
from pyro_scale.types import BoundKernel, Fitting, Info, LogPosterior, Noise, Position, Schedule, Settings

SMALL = 0.1
"""Length of the columns at the start: at 0 they would have no slope."""


@dataclass(frozen=True)
class LowRankVI:
    """Settings of variational inference with a covariance that is diagonal plus low rank.

    Args:
        step_size: epsilon, a step in standard deviations of q: a number or schedule; > 0. None is `default_step_size`,
            which falls to 0 along half a cosine, from a start at a mode.
        rank: columns of U; >= 1. More than there are coordinates are as many as these.
        num_particles: draws of q that the gradient of a step averages; >= 1.
        stick_the_landing: whether the gradient leaves out the score of q, whose mean is 0.
        temperature: 1 is the evidence lower bound; below 1 q is narrower, at 0 without end; a number or schedule; >= 0.
        initial_sd: sds of q at the start, in unconstrained coordinates: a number, or a tree by site; > 0. None is what
            the curvature at the mode says, or `num_data**-0.5` with a step_size of one's own.

    Raises:
        ArgumentError: a setting or num_data is out of its range or not a number.

    Example:
        >>> bound = LowRankVI(step_size=0.1).bind(lambda position, batch: -(position["x"] ** 2).sum(), num_data=1)
        >>> state = bound.init({"x": torch.zeros(3)}, ())
        >>> bound.approximation(state).directions.shape
        torch.Size([3, 3])
    """

    default_step_size: ClassVar[float] = 0.05

    step_size: float | Schedule | None = None
    rank: int = 10
    num_particles: int = 1
    stick_the_landing: bool = True
    temperature: float | Schedule = 1.0
    initial_sd: float | Position | None = None

    def __post_init__(self) -> None:
        check(self)
        check_count("LowRankVI: rank", self.rank, 1)
        check_scale("LowRankVI", self.initial_sd)

    def fitting(self, num_chains: int) -> Fitting:
        """One normal, around the mode."""
        return Fitting(from_mode=True)

    def at_mode(self, curvature: Tensor, like: Position) -> LowRankVI:
        """Starts with the sds that are right for a normal posterior of this curvature, `(d, d)` or its diagonal."""
        if self.initial_sd is not None:
            return self
        diagonal = curvature if curvature.ndim == 1 else curvature.diagonal()
        return replace(self, initial_sd=tree.unravel(diagonal.rsqrt(), tree.shapes(like)))

    def bind(self, target: LogPosterior, num_data: int) -> BoundKernel:
        """Joins the settings to a target over `num_data` rows."""
        check_number("LowRankVI", "num_data", num_data, positive=True)
        initial_sd = num_data**-0.5 if self.initial_sd is None else self.initial_sd
        return BoundKernel(
            partial(noise_shape, self.num_particles),
            partial(init, self.rank, initial_sd),
            partial(update, target, self.stick_the_landing),
            approximation,
        )


class LowRankVIState(NamedTuple):
    """Mean, log diagonal and columns of q, and what Adam remembers of each."""

    position: Position
    log_scale: Position
    columns: Tensor
    mean_moments: adam.Moments
    scale_moments: adam.Moments
    column_moments: adam.Moments
    num_steps: Tensor


def approximation(state: LowRankVIState) -> LowRankGaussian:
    """q."""
    left, sizes, _ = torch.linalg.svd(state.columns, full_matrices=False)
    return LowRankGaussian(state.position, tree.map(torch.exp, state.log_scale), left, 1 + sizes**2)


def init(rank: int, initial_sd: float | Position, position: Position, noise: Noise) -> LowRankVIState:
    """Starts around a position, with small columns at right angles: cosines of so many periods."""
    vector = tree.ravel(position)
    size, log_scale = len(vector), tree.map(torch.log, tree.full_like(position, initial_sd))
    places, periods = torch.arange(size, device=vector.device) + 0.5, torch.arange(min(rank, size)) + 1
    columns = torch.cos(math.pi / size * places[:, None] * periods.to(vector.device)).to(vector.dtype)
    if size == 1:
        columns = torch.ones_like(columns)
    columns = SMALL * columns / torch.linalg.vector_norm(columns, dim=0).clamp(min=1e-3)
    none = adam.no_moments({"": vector}), adam.no_moments(position), adam.no_moments({"": columns})
    num_steps = torch.zeros((), dtype=torch.long, device=vector.device)
    return LowRankVIState(position, log_scale, columns, *none, num_steps)


def update(
    target: LogPosterior,
    stick_the_landing: bool,
    state: LowRankVIState,
    batch: Any,
    noise: Position,
    settings: Settings,
) -> tuple[LowRankVIState, Info]:
    """One step, by the equations at the top of this file."""
    temperature, num_steps, shapes = settings.temperature, state.num_steps + 1, tree.shapes(state.position)
    scale, columns, z = tree.ravel(tree.map(torch.exp, state.log_scale)), state.columns, tree.flat(noise, shapes)

    def stretched(vectors: Tensor) -> Tensor:
        return vectors + vectors @ columns @ columns.T

    w = stretched(z)
    inner = torch.eye(columns.shape[1], dtype=columns.dtype, device=columns.device) + columns.T @ columns
    mean = tree.ravel(state.position)
    found, values = gradients(target, tree.unravel(mean + scale * w, shapes), batch)
    slopes = tree.flat(found, shapes) * scale  # D g
    own = columns.new_zeros(()), torch.zeros_like(columns)
    if stick_the_landing:
        slopes = slopes + temperature * (z - torch.linalg.solve(inner, (z @ columns).T).T @ columns.T)
    else:
        own = temperature, 2 * temperature * torch.linalg.solve(inner, columns.T).T
    along_columns = (slopes.T @ (z @ columns) + z.T @ (slopes @ columns)) / len(z) + own[1]
    along_scale = tree.unravel(((slopes * w).mean(0) + own[0]) / 2, shapes)
    ahead, mean_moments = adam.direction({"": stretched(slopes).mean(0)}, *state.mean_moments, num_steps, DAMPING)
    wider, scale_moments = adam.direction(along_scale, *state.scale_moments, num_steps, DAMPING)
    turn, column_moments = adam.direction({"": along_columns / 2}, *state.column_moments, num_steps, DAMPING)
    rate = settings.step_size
    moved = tree.unravel((mean + rate * scale * stretched(ahead[""])).to(mean.dtype), shapes)
    log_scale = tree.map(lambda x, step: (x + rate * step).to(x.dtype), state.log_scale, wider)
    columns = (columns + rate * turn[""]).to(columns.dtype)
    log_det = 2 * (scale.log().sum() + torch.linalg.slogdet(inner).logabsdet)
    after = LowRankVIState(moved, log_scale, columns, mean_moments, scale_moments, column_moments, num_steps)
    return after, Info(objective(values, noise, log_det, temperature), torch.zeros_like(num_steps))
