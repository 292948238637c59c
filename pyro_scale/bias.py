r"""How far the draws of a kernel are from a normal posterior, by step size and by minibatches, before any is drawn.

Along an eigenvector of the curvature, of eigenvalue k, a position is that of one coordinate (`law_of`), to which
minibatches whose gradient has variance v there add v times `noise_gain`. What a kernel takes out of its injected noise
is known to it by coordinate, and makes the law narrower.

A thermostat settles at the friction $\zeta$ where what drives it is 0 on average. It is driven by $m_1^2$ and by
$m'^2$, after the kick and after the noise, of which $m' = c m_1 + s \xi$ with $c = e^{-h \zeta}$ and
$s^2 = \gamma T (1 - c^2) / \zeta$:

$$\tfrac12 (\mathrm E m_1^2 + \mathrm E m'^2) = T, \qquad \mathrm E m_1^2 = (\mathrm E m'^2 - s^2) / c^2,$$

in the mean over all directions, or in each where the thermostat is diagonal. There the law is that of friction
$\zeta$ at the temperature $\gamma T / \zeta$, and the gradient's noise. For small steps $\zeta = \gamma + h V / (2 T)$.
In permutations of the rows positions see less of the noise than momenta do, so that the thermostat makes them narrow.

Means are those of the posterior: the gradients are unbiased, and a step is affine. Noise that varies with the position
counts by its average over the draws.

What is not predicted: how a thermostat fluctuates around $\zeta$, which changes errors of three coordinates that share
one of rate 1 by up to a fifth, and makes a law of its own at step sizes about 1; a preconditioner, in whose place is
the identity, near which it is in whitened coordinates; a diagonal thermostat whose coordinates are not the directions.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_scale import tree
from pyro_scale.law import law_of, noise_gain
from pyro_scale.types import Kernel

KNOTS = 48
"""Curvatures at which laws are computed; between them they are interpolated."""
FROZEN = 1e-100
"""The rate of a thermostat that stands still; kernels take none that is 0."""
SETTLED = 1e-8
"""The friction at which a thermostat settles is found to so much of itself."""
LEAST_FRICTION = 1e-3
"""Of a thermostat, times the step size."""
MOST_TRIALS = 20


class Bias(NamedTuple):
    """Relative errors of standard deviations, by direction, `(d,)`.

    Attributes:
        step_size: at the finite step, without gradient noise; infinite where a step is not stable.
        minibatches: what gradient noise adds to that.
    """

    step_size: Tensor
    minibatches: Tensor


def predicted_bias(
    kernel: Kernel,
    curvature: Tensor,
    gradient_noise: Tensor | float,
    num_data: int,
    batches_per_epoch: float,
) -> Bias:
    """What a kernel's standard deviations are on a normal posterior, relative to it, minus 1.

    Args:
        kernel: its step_size is a number, its temperature above 0 at the first step. A tree as its
            `gradient_variance` has a value for each coordinate of the curvature, in the order of `tree.ravel`.
        curvature: negative Hessian of the log posterior, divided by num_data, in the kernel's coordinates: `(d, d)`,
            whose eigenvectors are the directions, by rising eigenvalue; or `(d,)`, its diagonal, by coordinate.
        gradient_noise: covariance over minibatches of the gradient divided by num_data, `(d, d)`, or its diagonal
            `(d,)`, or one number for all coordinates; 0 for none.
        num_data: N.
        batches_per_epoch: N / n; infinity for rows drawn with replacement.

    Example:
        >>> from pyro_scale.kernels import SGLD
        >>> bias = predicted_bias(SGLD(step_size=0.1), torch.ones(1), 0.0, 1000, 20.0)
        >>> round(float(bias.step_size), 4)  # (1 - 0.1 / 2) ** -0.5 - 1
        0.026
    """
    curvatures, vectors = curvature.to(torch.float64), None
    if curvature.ndim == 2:
        curvatures, vectors = torch.linalg.eigh(curvatures)
    temperature = kernel.temperature(0) if callable(kernel.temperature) else kernel.temperature
    unit = num_data / temperature
    seen = _Seen(kernel, curvatures, batches_per_epoch)
    known = getattr(kernel, "gradient_variance", 0.0)
    known = tree.ravel(known) if isinstance(known, dict) else torch.as_tensor(known)
    taken = (unit * known.to(curvatures) / seen.most_taken()).clamp(max=1)
    noise = torch.as_tensor(gradient_noise).to(curvatures)
    none = torch.zeros_like(curvatures)
    exact = seen.variances(none, none)
    total = seen.variances(unit * _along(noise, vectors, curvatures), _along(taken, vectors, curvatures))
    step_size = exact.sqrt() - 1
    return Bias(step_size, torch.where(exact.isinf(), 0.0, total.sqrt() - exact.sqrt()))


class _Moments(NamedTuple):
    """By direction, `(d,)`; variances are relative to those at step size 0.

    Attributes:
        position, momentum: variances, without noise of the gradient.
        position_gain, momentum_gain: what a unit of that noise adds to them.
    """

    position: Tensor
    momentum: Tensor
    position_gain: Tensor
    momentum_gain: Tensor


class _Seen:
    """A normal posterior of curvatures `(d,)`, as a kernel sees it, at temperature 1 and one row."""

    def __init__(self, kernel: Any, curvatures: Tensor, batches_per_epoch: float) -> None:
        self.diagonal = getattr(kernel, "thermostat", "") == "diagonal"
        self.thermostatted = hasattr(kernel, "thermostat_rate")
        changed = {"temperature": 1.0}
        changed |= {"gradient_variance": 0.0} if hasattr(kernel, "gradient_variance") else {}
        changed |= {"thermostat_rate": FROZEN} if self.thermostatted else {}
        self.kernel: Any = replace(kernel, **changed)
        self.curvatures = curvatures
        self.batches_per_epoch = batches_per_epoch

    def most_taken(self) -> float:
        """The V that the kernel takes out of the noise it injects where that leaves none."""
        if not hasattr(self.kernel, "gradient_variance"):
            return math.inf
        step_size = self.kernel.step_size
        small = 1e-3 / (step_size + step_size**2)  # as a curvature it is stable, as a V less than all
        less = replace(self.kernel, gradient_variance=small)
        ratio = law_of(less, step_size, small).sd / law_of(self.kernel, step_size, small).sd
        return float(small / (1 - ratio**2))

    def variances(self, noise: Tensor, taken: Tensor) -> Tensor:
        """Of positions, relative to the posterior's.

        Args:
            noise: V along every direction.
            taken: the share of the injected noise that is left out, along every direction.
        """
        if self.thermostatted and self.diagonal:
            return self._one_by_one(noise)
        if self.thermostatted:
            share, moments = self._settled(noise)
            injected = torch.full_like(noise, share)
        else:
            injected, moments = 1 - taken, self._moments(self.kernel)
        found = injected * moments.position + noise * moments.position_gain
        return torch.where(moments.position.isinf(), torch.inf, found)

    def _one_by_one(self, noise: Tensor) -> Tensor:
        """With a thermostat for each direction; directions that are alike to 1 per cent are taken for one."""
        pairs = torch.stack([self.curvatures, noise])
        alike, place = (100 * pairs.log().clamp(min=-50)).round().unique(dim=1, return_inverse=True)
        result = torch.empty_like(noise)
        for number in range(alike.shape[1]):
            members = place == number
            mean = pairs[:, members].mean(1, keepdim=True)
            one = _Seen(replace(self.kernel, thermostat="scalar"), mean[0], self.batches_per_epoch)
            result[members] = one.variances(mean[1], torch.zeros_like(mean[1]))
        return result

    def _settled(self, noise: Tensor) -> tuple[float, _Moments]:
        """Where directions share a thermostat: gamma over the friction that it settles at, and the moments there."""
        step_size, gamma = self.kernel.step_size, self.kernel.friction
        least, most = max(gamma, LEAST_FRICTION / step_size), 2 / step_size
        if not noise.any():
            return 1.0, self._moments(replace(self.kernel, friction=least))
        friction, before = gamma + step_size / 2 * float(noise.mean()), (math.nan, math.nan)
        for _ in range(MOST_TRIALS):
            friction = min(max(friction, least), most)
            moments = self._moments(replace(self.kernel, friction=friction))
            last = gamma / friction * moments.momentum + noise * moments.momentum_gain
            kept = math.exp(-2 * step_size * friction)
            kicked = (last - gamma / friction * (1 - kept)) / kept
            missed = friction * (float((last + kicked).mean()) / 2 - 1)  # nearly a straight line in the friction
            if not SETTLED * friction < abs(missed) < math.inf or (friction == most and missed > 0):
                break
            slope = (missed - before[1]) / (friction - before[0])
            before, friction = (friction, missed), friction - missed / (slope if slope < 0 else -1.0)
        return gamma / friction, moments

    def _moments(self, kernel: Any) -> _Moments:
        distinct, place = self.curvatures.clamp(min=0).unique(return_inverse=True)
        return _Moments(*self._moments_of(kernel, distinct)[place].T)

    def _moments_of(self, kernel: Any, curvatures: Tensor) -> Tensor:
        """`(n, 4)` at rising curvatures `(n,)`: each from its law where they are few, otherwise interpolated."""
        if len(curvatures) <= KNOTS:
            return torch.stack([self._moments_at(kernel, curvature) for curvature in curvatures.tolist()])
        least, most = (float(curvatures[curvatures > 0][end].log10()) for end in (0, -1))
        knots = torch.logspace(least, most, KNOTS).to(curvatures)
        table = self._moments_of(kernel, knots)
        stable = table[:, 0].isfinite()
        # all have the pole of the first, at the edge of stability, where its inverse is straight
        straight = torch.cat([1 / table[:, :1], table[:, 1:] / table[:, :1]], 1)
        right = torch.searchsorted(knots, curvatures).clamp(1, KNOTS - 1)
        left = right - 1
        share = (curvatures - knots[left]) / (knots[right] - knots[left])
        found = torch.lerp(straight[left], straight[right], share[:, None])
        found = torch.cat([1 / found[:, :1], found[:, 1:] / found[:, :1]], 1)
        for place in (stable[left] & ~stable[right]).nonzero().flatten().tolist():
            found[place] = self._moments_at(kernel, float(curvatures[place]))
        return torch.where((stable[left] & (curvatures > 0))[:, None], found, torch.inf)

    def _moments_at(self, kernel: Any, curvature: float) -> Tensor:
        """The four numbers of one direction; infinite where steps are not stable."""
        law = law_of(kernel, kernel.step_size, curvature)
        if not math.isfinite(law.sd):
            return torch.full((4,), torch.inf, dtype=torch.float64)
        gain = curvature * noise_gain(law.response, self.batches_per_epoch)
        momenta = (1.0, 0.0)
        if len(law.momentum_response):
            momenta = (law.momentum_sd**2, noise_gain(law.momentum_response, self.batches_per_epoch))
        return torch.tensor([law.sd**2, momenta[0], gain, momenta[1]], dtype=torch.float64)


def _along(covariance: Tensor, vectors: Tensor | None, curvatures: Tensor) -> Tensor:
    """The variance along every direction, `(d,)`, of a covariance `(d, d)`, its diagonal, or a multiple of 1."""
    if covariance.ndim < 2:
        diagonal = covariance.expand(len(curvatures))
        return diagonal if vectors is None else (vectors.square() * diagonal[:, None]).sum(0)
    return covariance.diagonal() if vectors is None else (vectors * (covariance @ vectors)).sum(0)
