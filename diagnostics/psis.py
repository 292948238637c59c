"""Pareto smoothed importance sampling by ArviZ, whichever generation is installed."""

from __future__ import annotations

import importlib
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

LEAST_DRAWS = 25
"""A fifth of the draws make the tail, and a generalised Pareto distribution is not fitted to less than five."""
MOST_K = 0.7


def smoothed(log_weights: Array, r_eff: float = 1.0) -> tuple[Array, Array]:
    """Importance weights, the largest replaced by order statistics of a Pareto distribution fitted to them.

    Vehtari, Simpson, Gelman, Yao & Gabry (2024), Pareto smoothed importance sampling, JMLR 25.

    Args:
        log_weights: `(..., num_draws)`, up to a constant; minus infinity where a draw counts for nothing.
        r_eff: effective number of draws / number of draws.

    Returns:
        Log weights that add up to 1, `(..., num_draws)`, and the shape k of the Pareto distribution, `(...)`: the
        weights have 1 / k finite moments. Minus infinity where the largest weights are all the same.

    Example:
        >>> weights, k = smoothed(np.log(np.arange(1.0, 101.0)))
        >>> round(float(np.exp(weights).sum()), 3), bool(k < 0.5)
        (1.0, True)
    """
    rows = np.asarray(log_weights, dtype=np.float64)
    shape, rows = rows.shape, rows.reshape(-1, rows.shape[-1])
    top = rows.max(1, keepdims=True)
    weights = rows - top
    weights = weights - np.log(np.exp(weights).sum(1, keepdims=True))
    k = np.full(len(rows), -np.inf)
    tail = math.ceil(min(rows.shape[1] / 5, 3 * (rows.shape[1] / r_eff) ** 0.5))
    cutoff = np.partition(rows, -tail - 1, axis=1)[:, -tail - 1]
    uneven = cutoff < top[:, 0]  # else there is nothing to fit, which the generations of ArviZ answer differently
    if uneven.any():
        weights[uneven], k[uneven] = _by_arviz(rows[uneven], r_eff)
    return weights.reshape(shape), k.reshape(shape[:-1])


def largest_k(num_draws: int) -> float:
    """The k up to which weights of so many draws can be relied on: Vehtari et al. (2024)."""
    return min(1 - 1 / math.log10(num_draws), MOST_K)


def _by_arviz(log_weights: Array, r_eff: float) -> tuple[Array, Array]:
    arviz: Any = importlib.import_module("arviz")  # here, since it takes seconds and may warn
    if int(arviz.__version__.split(".")[0]) >= 1:
        stats: Any = importlib.import_module("arviz_stats.base").array_stats
        found = stats.psislw(-log_weights, r_eff=r_eff)  # what it takes is a log-likelihood: minus the log weights
    else:
        found = arviz.psislw(log_weights, r_eff)
    return np.asarray(found[0]), np.asarray(found[1])
