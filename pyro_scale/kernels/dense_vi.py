r"""Variational inference with any covariance: a normal with a Cholesky factor, by reparametrised gradients.

With $\theta = \mu + L z$, averaged over several z (`reparametrised.py`),

$$a = L^\top \nabla \log p(\theta), \quad B = a z^\top + T I, \qquad \text{or} \qquad
a = L^\top \nabla \log p(\theta) + T z, \quad B = a z^\top$$

without the score of q, which is `stick_the_landing`; and then, by Adam with $\delta = 1$,

$$\mu' = \mu + \epsilon L \, \mathrm{Adam}(a), \qquad
L' = L \, (I + \epsilon \, \mathrm{strictly\ lower}(A)) \text{ with columns times } e^{\epsilon A_{ii}}, \quad
A = \mathrm{Adam}(B \text{ with its diagonal halved}).$$

L' is L times a lower triangle, as in Lin, Nielsen, Khan & Schmidt (2021): it stays one with a positive diagonal, and a
step does not depend on units or correlations of the coordinates.

References:
    Lin, Nielsen, Khan & Schmidt (2021), Tractable structured natural-gradient descent using local parameterizations,
    ICML.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from pyro_scale import tree
from pyro_scale.gaussians import DenseGaussian
from pyro_scale.kernels import adam
from pyro_scale.kernels.reparametrised import DAMPING, DECAYS, check, check_scale, gradients, noise_shape, objective
from pyro_scale.schedules import check_number
from pyro_scale.types import BoundKernel, Fitting, Info, LogPosterior, Noise, Position, Schedule, Settings


@dataclass(frozen=True)
class DenseVI:
    """Settings of variational inference with any covariance; for some hundred coordinates.

    Args:
        step_size: epsilon, a step in standard deviations of q: a number or schedule; > 0. None is `default_step_size`,
            which falls to 0 along half a cosine, from a start at a mode.
        num_particles: draws of q that the gradient of a step averages; >= 1. In minibatches several bring the mean
            nearer than smaller steps or an average over steps do: which draw met which rows is the noise.
        stick_the_landing: whether the gradient leaves out the score of q, whose mean is 0.
        temperature: 1 is the evidence lower bound; below 1 q is narrower, at 0 without end; a number or schedule; >= 0.
        initial_sd: q at the start, in unconstrained coordinates: sds, as a number or a tree by site, or the lower
            triangle of a covariance in the order of the sites, `(d, d)`; > 0. None is what the curvature at the mode
            says, or `num_data**-0.5` with a step_size of one's own: from too wide a start Adam is slow for long.

    Raises:
        ArgumentError: a setting or num_data is out of its range or not a number.

    Example:
        >>> bound = DenseVI(step_size=0.1).bind(lambda position, batch: -position["x"] ** 2 / 2, num_data=1)
        >>> state = bound.init({"x": torch.tensor(0.0)}, ())
        >>> bound.approximation(state)
        DenseGaussian(mean={'x': tensor(0.)}, factor=tensor([[1.]]))
    """

    default_step_size: ClassVar[float] = 0.05

    step_size: float | Schedule | None = None
    num_particles: int = 1
    stick_the_landing: bool = True
    temperature: float | Schedule = 1.0
    initial_sd: float | Position | Tensor | None = None

    def __post_init__(self) -> None:
        check(self)
        check_scale("DenseVI", self.initial_sd)

    def fitting(self, num_chains: int) -> Fitting:
        """One normal, around the mode."""
        return Fitting(from_mode=True)

    def at_mode(self, curvature: Tensor, like: Position) -> DenseVI:
        """Starts with the covariance of a normal posterior of this curvature, `(d, d)` or its diagonal."""
        if self.initial_sd is not None:
            return self
        if curvature.ndim == 1:
            return replace(self, initial_sd=curvature.rsqrt().diag())
        return replace(self, initial_sd=DenseGaussian.of_precision(like, curvature).factor)

    def bind(self, target: LogPosterior, num_data: int) -> BoundKernel:
        """Joins the settings to a target over `num_data` rows."""
        check_number("DenseVI", "num_data", num_data, positive=True)
        initial_sd = num_data**-0.5 if self.initial_sd is None else self.initial_sd
        return BoundKernel(
            partial(noise_shape, self.num_particles),
            partial(init, initial_sd),
            partial(update, target, self.stick_the_landing),
            approximation,
        )


class DenseVIState(NamedTuple):
    """Mean and Cholesky factor of q, and what Adam remembers of each."""

    position: Position
    factor: Tensor
    mean_moments: adam.Moments
    factor_moments: adam.Moments
    num_steps: Tensor


def approximation(state: DenseVIState) -> DenseGaussian:
    """q."""
    return DenseGaussian(state.position, state.factor)


def init(initial_sd: float | Position | Tensor, position: Position, noise: Noise) -> DenseVIState:
    """Starts around a position; the noise is not used."""
    vector = tree.ravel(position)
    if isinstance(initial_sd, Tensor):
        factor = initial_sd.to(vector)
    else:
        factor = torch.diag(tree.ravel(tree.full_like(position, initial_sd)))
    none = adam.no_moments({"": vector}), adam.no_moments({"": factor})
    return DenseVIState(position, factor, *none, torch.zeros((), dtype=torch.long, device=vector.device))


def update(
    target: LogPosterior,
    stick_the_landing: bool,
    state: DenseVIState,
    batch: Any,
    noise: Position,
    settings: Settings,
) -> tuple[DenseVIState, Info]:
    """One step, by the equations at the top of this file."""
    q, temperature, num_steps = approximation(state), settings.temperature, state.num_steps + 1
    shapes = tree.shapes(state.position)
    found, values = gradients(target, q.transform(noise), batch)
    slopes, z = tree.flat(found, shapes) @ q.factor, tree.flat(noise, shapes)
    identity = torch.eye(len(q.factor), dtype=q.factor.dtype, device=q.factor.device)
    if stick_the_landing:
        slopes = slopes + temperature * z
    along_factor = slopes.T @ z / len(z) + (0.0 if stick_the_landing else temperature * identity)
    along_factor = along_factor.tril() * (1 - identity / 2)
    ahead, mean_moments = adam.direction({"": slopes.mean(0)}, *state.mean_moments, num_steps, DAMPING, DECAYS)
    wider, factor_moments = adam.direction({"": along_factor}, *state.factor_moments, num_steps, DAMPING, DECAYS)
    rate, turn = settings.step_size, wider[""]
    vector = tree.ravel(state.position) + rate * (q.factor @ ahead[""])
    factor = q.factor @ (identity + rate * turn.tril(-1)) * torch.exp(rate * turn.diagonal())
    position = tree.map(lambda leaf, old: leaf.to(old.dtype), tree.unravel(vector, shapes), state.position)
    moved = DenseVIState(position, factor.to(q.factor.dtype), mean_moments, factor_moments, num_steps)
    return moved, Info(objective(values, noise, q.log_det, temperature), torch.zeros_like(num_steps))
