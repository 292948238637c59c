"""One row a value: moments, quantiles, and how far they can be trusted; the same columns under either ArviZ."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

COLUMNS = ["mean", "sd", "q5", "median", "q95", "mcse_mean", "mcse_sd", "ess_bulk", "ess_tail", "r_hat"]
OF_CHAINS = ("ess_bulk", "ess_tail", "r_hat")
QUANTILES = (0.05, 0.5, 0.95)
LEAST_DRAWS = 4
"""ArviZ splits chains, and half a chain of fewer draws has no variance."""


def table_of(names: Sequence[str], values: NDArray[np.float64], *, chains: bool = True) -> pd.DataFrame:
    """Columns `COLUMNS` of draws `(num_chains, num_samples, values)`; NaN where a number is not known.

    Where a draw is not finite, nothing is known of its value; of fewer than two draws no sd, of fewer than 4 a chain no
    Monte Carlo error, of a single chain no R-hat. ArviZ's own `summary` has other columns, intervals and digits in
    each of its generations; the numbers it is made of are those of both. Draws that are no `chains` have no effective
    sample sizes and no R-hat: those of a normal are independent, and modes and particles no sample.
    """
    table = pd.DataFrame(np.nan, index=pd.Index(names), columns=COLUMNS, dtype=float)
    known = np.isfinite(values).all((0, 1))
    some = values[..., known]
    if some.size == 0:
        return table
    flat = some.reshape(-1, some.shape[-1])
    found = {"mean": flat.mean(0), **dict(zip(("q5", "median", "q95"), np.quantile(flat, QUANTILES, 0), strict=True))}
    if len(flat) > 1:
        found["sd"] = flat.std(0, ddof=1)
    for column, numbers in {**found, **_errors(some)}.items():
        if chains or column not in OF_CHAINS:
            table.loc[known, column] = numbers
    return table


def _errors(values: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    num_chains, num_samples, _ = values.shape
    if num_samples < LEAST_DRAWS:
        return {}
    import arviz as az
    import xarray as xr

    data = xr.Dataset({"x": (("chain", "draw", "value"), values)})
    with np.errstate(all="ignore"), warnings.catch_warnings():  # of values that do not move
        warnings.simplefilter("ignore", RuntimeWarning)
        found = {
            "mcse_mean": az.mcse(data, method="mean"),
            "mcse_sd": az.mcse(data, method="sd"),
            "ess_bulk": az.ess(data, method="bulk"),
            "ess_tail": az.ess(data, method="tail", prob=(QUANTILES[0], QUANTILES[-1])),
        }
        if num_chains > 1:
            found["r_hat"] = az.rhat(data)
    return {name: np.asarray(one["x"].values, dtype=float) for name, one in found.items()}
