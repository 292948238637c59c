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
from collections.abc import Iterable, Sequence
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

LEAST_EFFECTIVE = 100
"""Independent draws of a product, which are skewed, below which their mean has no error that could be relied on."""
LEAST_GAIN = 0.01
"""Momenta that see so small a share of what minibatches add to the gradient cannot measure it."""


class Measured(NamedTuple):
    """A number and its Monte Carlo standard error."""

    value: float
    error: float

    @classmethod
    def mean(cls, draws: Tensor) -> Measured:
        """Of a series `(num_chains, num_samples)`; the error is infinite where there are too few to tell it."""
        number = effective_size(draws)
        enough = number >= LEAST_EFFECTIVE
        return cls(float(draws.mean()), float(draws.std()) / math.sqrt(number) if enough else math.inf)


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
    # what a sample of the rows adds to all gradients alike leaves the mean as it is, but not its error
    by_rows = [Measured.mean(-(centered * (each - each.mean((0, 1)))).mean(-1)) for each in gradients]
    values = torch.tensor([each.value for each in by_rows], dtype=torch.float64)
    of_rows = float(values.var()) / len(values) if len(values) > 1 else 0.0
    error = math.sqrt(sum(each.error**2 for each in by_rows) / len(by_rows) + of_rows)
    return Measured(float(values.mean()), error)


class Directions(NamedTuple):
    """Along what a site's coordinates lie.

    Attributes:
        curvatures: per datum, of the negative log posterior, by direction, `(n,)`.
        shares: of the site's coordinates, by direction, which sum to 1, `(n,)`.
    """

    curvatures: Tensor
    shares: Tensor

    @classmethod
    def alike(cls) -> Directions:
        """Of whitened coordinates."""
        return cls(torch.ones(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64))


def sd_from_momenta(
    kernel: Any, num_data: int, batches_per_epoch: float, kinetic: Tensor, along: Directions, subtracted: float
) -> Measured | None:
    r"""By how much a site's sds are wrong, relative to themselves, as its momenta tell; None if they cannot.

    Momenta that are warmer than a finite step explains have had their heat from minibatches. Their law, `law_of`, says
    how much noise that is, and the same law what it does to positions. Without minibatches there is nothing to tell.

    Args:
        kernel: with numbers as step_size and temperature.
        num_data: N.
        batches_per_epoch: N / n; infinity for rows drawn with replacement.
        kinetic: mean square of the momenta, `(num_chains, num_samples)`.
        along: directions of the site's coordinates.
        subtracted: V that the kernel takes out of its noise, averaged over the site.
    """
    if batches_per_epoch <= 1:
        return None
    if hasattr(kernel, "gradient_variance"):
        kernel = replace(kernel, gradient_variance=subtracted * num_data)  # the law is that of one row
    laws = [law_of(kernel, kernel.step_size, float(curvature)) for curvature in along.curvatures]
    if not all(math.isfinite(law.sd) and len(law.momentum_response) for law in laws):
        return None

    def mean(values: Iterable[float]) -> float:
        return sum(float(share) * value for share, value in zip(along.shares, values, strict=True))

    seen = Measured.mean(kinetic * num_data / kernel.temperature)
    heat = seen.value - mean(law.momentum_sd**2 for law in laws)
    white = mean(noise_gain(law.momentum_response, math.inf) for law in laws)
    momenta = mean(noise_gain(law.momentum_response, batches_per_epoch) for law in laws)
    if momenta < LEAST_GAIN * white:
        return None
    gains = (noise_gain(law.response, batches_per_epoch) for law in laws)
    positions = mean(float(k) * gain for k, gain in zip(along.curvatures, gains, strict=True))
    sd = math.sqrt(max(mean(law.sd**2 for law in laws) + heat * positions / momenta, 1e-6))
    return Measured(sd - 1, seen.error * positions / momenta / (2 * sd))
