r"""Distances between two samples of several values at once, and whether chance explains them.

With x, x' of one and y, y' of the other distribution, independent, the energy distance is

$$2\,\mathbb{E}\|x - y\| - \mathbb{E}\|x - x'\| - \mathbb{E}\|y - y'\|$$

(Székely & Rizzo (2013), equation 2.1) and the squared maximum mean discrepancy

$$\mathbb{E}k(x, x') + \mathbb{E}k(y, y') - 2\,\mathbb{E}k(x, y)$$

(Gretton et al. (2012), lemma 6). Both are 0 for equal distributions and positive for others, and are estimated without
bias, so that estimates for equal distributions lie around 0, on either side.

References:
    Székely & Rizzo (2013), Energy statistics: a class of statistics based on distances, Journal of Statistical
    Planning and Inference.
    Gretton, Borgwardt, Rasch, Schölkopf & Smola (2012), A kernel two-sample test, JMLR 13.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_scale.errors import ArgumentError

PERMUTATIONS = 999
LEAST = 8
"""Draws of either sample below which permutations tell nothing."""


class Distance(NamedTuple):
    """An unbiased estimate, and how often a random relabelling of the draws gives as large a one; NaN if not known."""

    value: float
    p_value: float


def energy_distance(
    x: Tensor, y: Tensor, generator: torch.Generator | None = None, *, distances: Tensor | None = None
) -> Distance:
    """Energy distance of two samples, with a permutation test.

    Args:
        x, y: `(n, d)` and `(m, d)`, independent draws, in units in which all coordinates count alike. A single draw
            stands for a distribution that is all there.
        generator: of the relabellings; None for no test.
        distances: of all draws from each other, where `pairwise` has taken them; None to take them here.

    Raises:
        ArgumentError: shapes that do not fit.

    Example:
        >>> x = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
        >>> energy_distance(x[:250], 1 + x[250:], torch.Generator().manual_seed(0)).p_value
        0.001
    """
    return _compared(-(pairwise(x, y) if distances is None else distances), len(x), generator)


def mmd(
    x: Tensor,
    y: Tensor,
    generator: torch.Generator | None = None,
    *,
    length: float | None = None,
    distances: Tensor | None = None,
) -> Distance:
    r"""Squared maximum mean discrepancy by the kernel $\exp(-\|x - y\|^2 / 2 \ell^2)$, with a permutation test.

    Args:
        x, y, generator, distances: as of `energy_distance`.
        length: ℓ, positive; None for the median distance of all draws from each other.
    """
    distances = pairwise(x, y) if distances is None else distances
    if length is None:
        length = float(distances[torch.ones_like(distances, dtype=torch.bool).triu(1)].median())
    if length == 0:  # more than half of all pairs are equal: whether they are is all that is left
        return _compared((distances == 0).double(), len(x), generator)
    return _compared(torch.exp(-(distances**2) / (2 * length**2)), len(x), generator)


def pairwise(x: Tensor, y: Tensor) -> Tensor:
    """Distances of all draws from each other, `(n + m, n + m)`; most of the time where draws have many values."""
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or 0 in (*x.shape, *y.shape):
        raise ArgumentError(
            f"The samples have shapes {tuple(x.shape)} and {tuple(y.shape)}; they must be (draws, values), with the "
            "same values and at least one draw."
        )
    both = torch.cat([x.double(), y.double()])
    # by differences: products would lose what is left of nearly equal draws
    found: Tensor = torch.cdist(both, both, compute_mode="donot_use_mm_for_euclid_dist")
    return found


def _compared(kernel: Tensor, n: int, generator: torch.Generator | None) -> Distance:
    """Mean of the kernel within both samples, the first of which has n draws, less twice that between them."""
    total = len(kernel)
    labels = torch.zeros(total, 1, dtype=torch.float64)
    labels[:n] = 1
    # a pair is of two draws, but for a distribution that is all in one
    alone = torch.where(labels[:, 0] == 1, n == 1, total - n == 1)
    kernel = torch.where(torch.eye(total, dtype=torch.bool) & ~alone, 0.0, kernel)
    value = float(_contrast(kernel, labels)[0])
    if generator is None or min(n, total - n) < LEAST or not math.isfinite(value):
        return Distance(value, math.nan)
    orders = torch.rand(PERMUTATIONS, total, generator=generator, device="cpu").argsort(1)
    relabelled = torch.zeros(PERMUTATIONS, total, dtype=torch.float64).scatter_(1, orders[:, :n], 1.0).T
    # rounding must not tell equal statistics apart
    as_large = int((_contrast(kernel, relabelled) >= value - 1e-12 * float(kernel.abs().max())).sum())
    return Distance(value, (1 + as_large) / (1 + PERMUTATIONS))


def _contrast(kernel: Tensor, labels: Tensor) -> Tensor:
    """For each column of labels, which are 1 for the first sample, `(columns,)`."""
    n = int(labels[:, 0].sum())
    m = len(labels) - n
    inner = kernel @ labels
    first = (labels * inner).sum(0)
    across = inner.sum(0) - first
    second = kernel.sum() - first - 2 * across
    return first / max(1, n * (n - 1)) + second / max(1, m * (m - 1)) - 2 * across / (n * m)
