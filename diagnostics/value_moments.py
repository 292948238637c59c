"""Moments, quantiles and convergence of many values at once, in blocks of bounded memory."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyro_scale.convergence import LEAST_DRAWS, ess, ess_mean, rhat

QUANTILES = (0.05, 0.5, 0.95)
BLOCK_NUMBERS = 2**24
"""Of draws that are looked at at once."""


def moments_of(values: Tensor) -> pd.DataFrame:
    """A row for each value of draws `(num_chains, num_samples, values)`; NaN where a number is not known.

    Columns: mean, sd (0 where all draws are the same), mcse_mean, q5, q50, q95, and ess_bulk, ess_tail and r_hat, which
    what does not vary does not have. Of a single draw there is no sd, of less than 4 a chain no error and no effective
    size, of a single chain no R-hat.
    """
    num_chains, num_samples = values.shape[:2]
    enough = num_samples >= LEAST_DRAWS
    parts = []
    for some in values.split(max(1, BLOCK_NUMBERS // (num_chains * num_samples)), -1):
        draws = some.detach().double().cpu()
        flat, unknown = draws.flatten(0, 1), torch.full(draws.shape[2:], torch.nan, dtype=torch.float64)
        still = (flat == flat[0]).all(0)  # rounding of the mean would leave them some variance
        sd = torch.where(still, 0.0, flat.std(0)) if len(flat) > 1 else unknown
        bulk, tail = ess(draws) if enough else (unknown, unknown)
        apart = rhat(draws) if enough and num_chains > 1 else unknown
        found = {"ess_bulk": bulk, "ess_tail": tail, "r_hat": apart}
        columns = {
            "mean": flat.mean(0),
            "sd": sd,
            "mcse_mean": sd / ess_mean(draws).sqrt() if enough else unknown,
            **{name: torch.where(still, torch.nan, each) for name, each in found.items()},
        }
        quantiles = np.quantile(flat.numpy(), QUANTILES, axis=0)
        named = {f"q{100 * share:.0f}": each for share, each in zip(QUANTILES, quantiles, strict=True)}
        parts.append(pd.DataFrame({**columns, **named}))
    return pd.concat(parts, ignore_index=True)
