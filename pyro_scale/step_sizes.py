"""The step size that suits a posterior: the largest at which a kernel's own law stays close enough to a normal one."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from pyro_scale import tree
from pyro_scale.bias import predicted_bias
from pyro_scale.law import Law, law_of, noise_gain
from pyro_scale.types import Kernel, Position

LARGEST, SMALLEST = 0.5, 1e-4
"""Step sizes that are looked at, in coordinates of curvature 1."""
ROOM = 7.0
"""Times the hardest curvature at which steps must be stable still. A run comes to places that are harder than those few
that were looked at, and a kernel that is exact up to its limit, as BAOAB, would leave no room by itself."""
MOST_NOISE = 0.05
"""Minibatches may add so much to the variance of draws, before it is taken out of the injected noise: what is taken out
is its average over the posterior, coordinate by coordinate, which misses how it varies and is correlated."""


def largest_step(
    kernel: Kernel,
    tolerance: float,
    curvature: float,
    noise: float,
    batches_per_epoch: float,
    limit: float,
    uneven: float = 0.0,
) -> float:
    """The largest step size, to 5 per cent, at which the sds of a normal posterior are right within a tolerance.

    Args:
        kernel: whose step size is looked for.
        tolerance: of the sd, relative to itself.
        curvature: per datum, at the hardest place that chains were seen to come to.
        noise: V, relative to temperature / num_data. Kernels without a `gradient_variance` are to absorb it by
            themselves, which they do while it is small beside 1 / step_size**2 and minibatches cancel little of it;
            what is left of it then, as `predicted_bias` says, is to be as small as the rest.
        batches_per_epoch: N / n.
        limit: the largest that comes into question.
        uneven: as `noise_gain` takes it.
    """

    def suits(step_size: float) -> bool:
        if not abs(law_of(kernel, step_size, curvature).sd - 1) <= tolerance:
            return False
        if not math.isfinite(law_of(kernel, step_size, ROOM * curvature).sd):
            return False
        if not hasattr(kernel, "gradient_variance"):
            return step_size**2 * noise <= MOST_NOISE and absorbed(step_size)
        gain = noise_gain(law_of(kernel, step_size).response, batches_per_epoch, uneven) if noise != 0 else 0.0
        return noise * gain <= MOST_NOISE

    def absorbed(step_size: float) -> bool:
        if noise == 0:
            return True
        given: Any = replace(kernel, step_size=step_size, temperature=1.0)  # type: ignore[type-var]
        bias = predicted_bias(given, torch.ones(1), noise, 1, batches_per_epoch)
        return abs(float(bias.minibatches)) <= tolerance

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
    uneven: float = 0.0,
) -> Suited:
    """A kernel with the largest step size that suits, and with what minibatches add taken out of the injected noise.

    Args:
        kernel, tolerance, curvature, noise, batches_per_epoch, limit, uneven: as `largest_step` takes them.
        variance: V of every coordinate; {} for none.
    """
    step_size = largest_step(kernel, tolerance, curvature, noise, batches_per_epoch, limit, uneven)
    law, chosen = law_of(kernel, step_size), replace(kernel, step_size=step_size)
    if variance and hasattr(kernel, "gradient_variance"):
        share = noise_gain(law.response, batches_per_epoch, uneven) / noise_gain(law.response, math.inf)
        chosen = replace(chosen, gradient_variance=tree.scale(variance, share))
    return Suited(chosen, law, noise)
