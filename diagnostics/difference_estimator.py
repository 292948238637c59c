"""A total of all rows, from a rough value of each and good ones of a sample of them."""

from __future__ import annotations

import math

from .psis import Array


def by_differences(surrogate: Array, values: Array, chosen: Array) -> tuple[float, float, float]:
    """Estimate of a total from a surrogate of every row, and what it is at a simple random sample of them.

    The difference estimator of Magnusson et al. (2020).

    Args:
        surrogate: `(num_data,)`.
        values: what the surrogate stands for, at the chosen rows; `(n,)`.
        chosen: indices of these rows, `(n,)`.

    Returns:
        Estimate; standard error that the total of all rows has, as they are a sample themselves; standard error of the
        estimate about the total of all rows.
    """
    num_data, n = len(surrogate), len(chosen)
    differences = values - surrogate[chosen]
    total = surrogate.sum() + num_data * differences.mean()
    variance = num_data**2 * (1 - n / num_data) * differences.var(ddof=1) / n
    center = surrogate.mean()  # about it, since squares of values far from 0 differ by little
    squares = ((surrogate - center) ** 2).sum()
    squares += num_data * ((values - center) ** 2 - (surrogate[chosen] - center) ** 2).mean()
    spread = squares - ((total - num_data * center) ** 2 - variance) / num_data
    return float(total), math.sqrt(max(float(spread), 0.0)), math.sqrt(float(variance))
