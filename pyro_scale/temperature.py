r"""Temperatures of a run: what momenta and gradients say about the law that chains sample, without any reference.

Draws $\theta$ of a density $p^{1/T}$ have, around any center c, by partial integration,

$$-\mathbb{E}\left[(\theta_i - c_i)\, \partial_i \log p(\theta)\right] = T :$$

the configurational temperature of a coordinate (Rugh (1997); here with the vector field $\theta - c$). It is the square
of how much too wide a normal posterior is sampled. Momenta have a variance of $T / N$, but for what a finite step
and the noise of minibatches add, and so measure that noise.

References:
    Rugh (1997), Dynamical approach to temperature, Physical Review Letters.
    Wenzel et al. (2020), How good is the Bayes posterior in deep neural networks really?, ICML, on both as diagnostics.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_scale.compile import CompiledModel
from pyro_scale.convergence import effective_size
from pyro_scale.derivative import grad_and_value
from pyro_scale.draws import over_draws
from pyro_scale.law import law_of, noise_gain
from pyro_scale.types import Batch, Position

LEAST_SERIES = 20
LEAST_GAIN = 0.01
"""Momenta that see so small a share of what minibatches add to the gradient cannot measure it."""


class Measured(NamedTuple):
    """A number and its Monte Carlo standard error."""

    value: float
    error: float

    @classmethod
    def mean(cls, draws: Tensor) -> Measured:
        """Of a series `(num_chains, num_samples)`; the error is infinite where there are too few to tell it."""
        number = effective_size(draws) if len(draws.flatten()) >= LEAST_SERIES else 0.0
        return cls(float(draws.mean()), float(draws.std()) / math.sqrt(number) if number > 0 else math.inf)


def gradients_at(compiled: CompiledModel, positions: Position, batch: Batch) -> Position:
    """Gradient of the log posterior, as the rows of a batch estimate it, at each position, `(n, *site)`."""

    def gradient(position: Position) -> Position:
        result: Position = grad_and_value(compiled)(position, batch)[0]
        return result

    found: Position = over_draws(gradient, positions, num_rows=len(batch.indices))
    return found


def configurational(positions: Tensor, gradients: Sequence[Tensor]) -> Measured:
    """Configurational temperature of a site, averaged over its coordinates.

    Args:
        positions: `(num_chains, num_samples, d)`, unconstrained.
        gradients: of the log posterior there, `(num_chains, num_samples, d)`; one for each of several sets of rows
            that stand for all.

    Example:
        >>> x = torch.randn(4, 500, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> round(configurational(3 * x, [-3 * x]).value)  # draws of sd 3 of a density of sd 1
        9
    """
    centered = positions - positions.mean((0, 1))
    by_rows = [Measured.mean(-(centered * gradient).mean(-1)) for gradient in gradients]
    values = torch.tensor([each.value for each in by_rows], dtype=torch.float64)
    of_rows = float(values.var()) / len(values) if len(values) > 1 else 0.0
    error = math.sqrt(sum(each.error**2 for each in by_rows) / len(by_rows) + of_rows)
    return Measured(float(values.mean()), error)


def sd_from_momenta(
    kernel: Any, num_data: int, batches_per_epoch: float, kinetic: Tensor, curvature: float, subtracted: float
) -> Measured | None:
    r"""By how much a site's sds are wrong, relative to themselves, as its momenta tell; None if they cannot.

    Momenta that are warmer than a finite step explains have had their heat from minibatches. Their law, `law_of`, says
    how much noise that is, and the same law what it does to positions.

    Args:
        kernel: with numbers as step_size and temperature.
        num_data: N.
        batches_per_epoch: N / n; 1 for all rows, infinity for rows drawn with replacement.
        kinetic: mean square of the momenta, `(num_chains, num_samples)`.
        curvature: per datum, of the negative log posterior along the site's coordinates.
        subtracted: V that the kernel takes out of its noise, averaged over the site.
    """
    if hasattr(kernel, "gradient_variance"):
        kernel = replace(kernel, gradient_variance=subtracted * num_data)  # the law is that of one row
    law = law_of(kernel, kernel.step_size, curvature)
    if not math.isfinite(law.sd) or not len(law.momentum_response):
        return None
    unit = num_data / kernel.temperature
    seen = Measured.mean(kinetic * unit)
    heat = seen.value - law.momentum_sd**2
    if batches_per_epoch <= 1:
        return Measured(heat / 2, seen.error / 2)
    gains = [noise_gain(each, batches_per_epoch) for each in (law.momentum_response, law.response)]
    if gains[0] < LEAST_GAIN * noise_gain(law.momentum_response, math.inf):
        return None
    variance = law.sd**2 + curvature * heat * gains[1] / gains[0]
    sd = math.sqrt(max(variance, 1e-6))
    return Measured(sd - 1, seen.error * curvature * gains[1] / gains[0] / (2 * sd))
