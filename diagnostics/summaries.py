"""One row a value: moments, quantiles, and how far they can be trusted; the same columns under either ArviZ."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

COLUMNS = ["mean", "sd", "q5", "median", "q95", "mcse_mean", "mcse_sd", "ess_bulk", "ess_tail", "r_hat"]
QUANTILES = (0.05, 0.5, 0.95)
LEAST_DRAWS = 4
"""ArviZ splits chains, and half a chain of fewer draws has no variance."""
DrawnAs = Literal["chains", "independent", "fits"]
"""Independent draws are those of a normal that was fitted; fits are single positions, one or several."""


def table_of(names: Sequence[str], values: NDArray[np.float64], drawn_as: DrawnAs = "chains") -> pd.DataFrame:
    """Columns `COLUMNS` of draws `(num_chains, num_samples, values)`; NaN where a number is not known.

    What has no chains has neither R-hat nor effective sample sizes. Draws that are independent have the Monte Carlo
    errors of independent ones, and fits by themselves none. Where a draw is not finite, nothing is known of its value;
    of fewer than two draws no sd, of fewer than 4 a chain no Monte Carlo error, of a single chain no R-hat. ArviZ's own
    `summary` has other columns, intervals and digits in each of its generations; the numbers it is made of are those of
    both.
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
    if drawn_as != "fits":
        found |= _errors(some) if drawn_as == "chains" else _errors_of_independent(some)
    for column, numbers in found.items():
        table.loc[known, column] = numbers
    return table


def _errors_of_independent(values: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Of the mean, and of the sd by the fourth moment, where draws are many."""
    flat = values.reshape(-1, values.shape[-1])
    number = len(flat)
    if number < LEAST_DRAWS:
        return {}
    away = flat - flat.mean(0)
    variance, fourth = (away**2).mean(0), (away**4).mean(0)
    with np.errstate(all="ignore"):  # of values that do not move
        of_sd = np.sqrt(np.maximum(fourth - variance**2, 0) / variance / number) / 2
    return {"mcse_mean": np.sqrt(variance / (number - 1)), "mcse_sd": of_sd}


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
