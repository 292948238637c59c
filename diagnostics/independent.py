"""Draws that are far enough apart in their chains to count as independent."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_scale.values import evenly_spaced

LEFT = 0.05
"""Correlation that is left between neighbours."""


def independent_draws(values: Tensor, effective: float, most: int) -> Tensor:
    r"""About independent draws among those of chains, `(n, d)`, at most `most` of them.

    The least effective sample size of bulk and tails of all values gives an autocorrelation time τ, the number of draws
    for each independent one. Draws are kept at a distance at which an autoregression with this τ, whose correlation at
    lag k is $((\tau - 1) / (\tau + 1))^k$, has forgotten all but 0.05. Chains that disagree have so few effective draws
    that no more than one of each is kept.

    Args:
        values: `(num_chains, num_samples, d)`.
        effective: the least effective sample size; NaN, as for chains of less than 4 draws, takes all as independent.
        most: >= 1; of more draws so many are taken, evenly spaced.
    """
    num_chains, num_samples, _ = values.shape
    kept = values[:, :: min(_lag(num_chains * num_samples / effective), num_samples)].flatten(0, 1)
    return at_most(kept, most).double()


def at_most(draws: Tensor, most: int) -> Tensor:
    """So many of draws `(n, ...)`, evenly spaced."""
    return draws if len(draws) <= most else draws[torch.from_numpy(evenly_spaced(len(draws), most)).to(draws.device)]


def _lag(time: float) -> int:
    if not time > 1:
        return 1
    return math.ceil(math.log(LEFT) / math.log((time - 1) / (time + 1)))
