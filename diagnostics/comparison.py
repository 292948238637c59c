"""How far posteriors are from a reference, parameter by parameter and as a whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyro_scale.checks import check_seed
from pyro_scale.posterior import Posterior

from .distances import LEAST, energy_distance, mmd, pairwise
from .independent import at_most, independent_draws
from .parameters import Parameters, everyone, shared_parameters
from .value_moments import BLOCK_NUMBERS, QUANTILES, moments_of

ERRORS = [f"q{100 * share:.0f}_error" for share in QUANTILES]
DISTANCES = ["energy_distance", "energy_p", "mmd2", "mmd_p"]
COLUMNS = [
    "mean", "sd", "mean_error", "mcse", "z", "sd_ratio", "ess_bulk", "r_hat", "seconds", "ess_per_s", *ERRORS,
    "wasserstein", *DISTANCES, "gradients", "passes",
]  # fmt: skip
COST = ["seconds", "gradients", "passes"]
MOST_DRAWS = 1000
"""Of the draws whose distances from each other are taken."""


def compare(*posteriors: Posterior, reference: Posterior | None = None, seed: int = 0) -> pd.DataFrame:
    """A table of means, sds, quantiles and their errors, of distances, and of the effort that went into them.

    Args:
        posteriors: what to judge; labelled by method, and numbered where methods repeat.
        reference: what to judge by, as from `nuts`; None takes the first posterior.
        seed: of the random relabellings behind the p-values.

    Returns:
        One row a scalar parameter that the posteriors share with the reference, and one named "all" for each posterior,
        the reference included. What is not known is NaN: sds of a single draw, R-hat of a single chain, ESS and
        standard errors of chains of less than 4 draws, errors of a parameter that does not vary in the reference,
        whatever draws that are not finite would enter, the row "all" included. Columns:

        mean, sd: of the draws.
        mean_error: mean minus the reference's mean, in reference sds; at "all" the largest in absolute value.
        mcse: Monte Carlo standard error of mean_error, that of the reference included, in reference sds.
        z: mean_error / mcse; beyond 3 or so it is more than chance. At "all" the largest in absolute value, which is
            beyond 3 by chance the more often the more parameters there are.
        sd_ratio: sd / reference sd; at "all" the one farthest from 1.
        ess_bulk, r_hat: as ArviZ has them; at "all" the smallest, and the largest. ESS is NaN where a parameter does
            not vary, and of fits, whose draws are independent by construction, or particles.
        seconds: of the whole run, compilation included.
        ess_per_s: ess_bulk / seconds; at "all" of the smallest ESS.
        q5_error, q50_error, q95_error: quantile minus that of the reference, in reference sds; at "all" the largest in
            absolute value.
        wasserstein: 1-Wasserstein distance of the parameter's draws from those of the reference, in reference sds; at
            "all" the largest. It is above 0 by chance, even for draws of the same distribution.
        energy_distance, mmd2: at "all" only, of the joint draws of all parameters that vary, in reference sds: energy
            distance, of which no root is taken, and squared maximum mean discrepancy by a Gaussian kernel of median
            length. Both are estimated without bias: around 0, on either side, for draws of the same distribution. They,
            and their p-values, are of at most 1000 draws of each posterior, kept so far apart in their chains that they
            are about independent (by the autocorrelation time of the parameter that mixes worst); where fewer than 8
            are left, of all draws.
        energy_p, mmd_p: at "all" only: how often 999 random exchanges of draws between the two give as large a
            distance; NaN with fewer than 8 independent draws of either.
        gradients: steps of all chains, warm-up included; each takes one gradient, of a minibatch where it has one (for
            NUTS their number is counted). NaN of fits that do not tell it, whose steps take none, one or many.
        passes: gradients, in passes over all rows.

    Raises:
        ArgumentError: nothing to compare, or no parameter in common.

    Example:
        >>> import torch
        >>> def made(shift):
        ...     draws = {"mu": shift + torch.randn(4, 500, generator=torch.Generator().manual_seed(0))}
        ...     about = {"num_steps": 500, "step_size": None, "timing": {"sample": 1.0}, "settings": {}}
        ...     return Posterior(draws, sample_stats={}, **about)
        >>> table = compare(made(0.5), reference=made(0.0))
        >>> round(float(table.loc[("unknown 2", "mu"), "mean_error"]), 1)
        0.5
    """
    labelled = everyone("compare", posteriors, reference)
    seed = check_seed(seed)
    shared = shared_parameters(list(labelled.values()))
    base, base_moments = shared[0], _moments(shared[0])
    judged = {}
    for (label, posterior), parameters in zip(labelled.items(), shared, strict=True):
        is_base = parameters is base
        table = _judge(base_moments if is_base else _moments(parameters), base_moments, is_base=is_base)
        if posterior.trace is not None:
            table[["ess_bulk", "ess_tail"]] = np.nan
        table["wasserstein"] = _wasserstein(parameters.flat, base.flat) / _unit(base_moments)
        for name, value in _effort(posterior).items():
            table[name] = value
        table["ess_per_s"] = table["ess_bulk"] / table["seconds"]
        total = _worst(table)
        if not (parameters.values.isfinite().all() and base.values.isfinite().all()):
            total = {name: total[name] for name in COST}
        elif is_base:
            total.update(dict.fromkeys(DISTANCES, 0.0) | {"energy_p": np.nan, "mmd_p": np.nan})
        else:
            total.update(_joint(parameters, table, base, base_moments, seed))
        judged[label] = pd.concat([table, pd.DataFrame({"all": total}).T]).reindex(columns=COLUMNS)
    return pd.concat(judged, names=["posterior", "parameter"])


def _moments(parameters: Parameters) -> pd.DataFrame:
    return moments_of(parameters.values).set_axis(parameters.names)


def _judge(table: pd.DataFrame, base: pd.DataFrame, *, is_base: bool) -> pd.DataFrame:
    """Errors in sds of the reference, whose moments are `base`."""
    out, unit = table.copy(), _unit(base)
    out["mean_error"] = (table["mean"] - base["mean"]) / unit
    out["sd_ratio"] = table["sd"] / unit
    variance = base["mcse_mean"] ** 2 + (0 if is_base else table["mcse_mean"] ** 2)
    out["mcse"] = np.sqrt(variance) / unit
    out["z"] = out["mean_error"] / out["mcse"]
    for name in ERRORS:
        quantile = name.removesuffix("_error")
        out[name] = (table[quantile] - base[quantile]) / unit
    return out


def _unit(base: pd.DataFrame) -> pd.Series:
    """Sds of the reference; NaN where it does not vary, since rounding alone would be infinitely many."""
    return base["sd"].where(base["sd"] > 0)


def _wasserstein(draws: Tensor, base: Tensor) -> list[float]:
    """For every parameter, of draws `(n, parameters)` and `(m, parameters)`; NaN where some are not finite."""
    from scipy.stats import wasserstein_distance

    pairs = zip(draws.T.numpy(), base.T.numpy(), strict=True)
    return [wasserstein_distance(*pair) if np.isfinite(np.concatenate(pair)).all() else np.nan for pair in pairs]


def _effort(posterior: Posterior) -> dict[str, float]:
    num_chains = len(next(iter(posterior.draws.values())))
    steps = posterior.num_steps * num_chains if posterior.trace is None else 0
    gradients = float(posterior.settings.get("gradients", steps or np.nan))
    num_data = posterior.settings.get("num_data")
    rows = posterior.settings.get("batch_size")
    share = (num_data if rows is None else rows) / num_data if num_data else np.nan
    seconds = sum(posterior.timing.values())
    return {"seconds": seconds if seconds else np.nan, "gradients": gradients, "passes": gradients * share}


def _worst(table: pd.DataFrame) -> dict[str, float]:
    """The row of a whole posterior."""

    def farthest(column: str, target: float = 0.0) -> Any:
        """Where it is; anywhere if no distance is known, as for a single draw or a reference that does not vary."""
        distances = table[column].sub(target).abs()
        return distances.idxmax() if distances.notna().any() else distances.index[0]

    worst = farthest("mean_error")
    return {
        "mean_error": table.loc[worst, "mean_error"],
        "mcse": table.loc[worst, "mcse"],
        **{name: table.loc[farthest(name), name] for name in ("z", *ERRORS)},
        "sd_ratio": table.loc[farthest("sd_ratio", 1.0), "sd_ratio"],
        "ess_bulk": table["ess_bulk"].min(),
        "r_hat": table["r_hat"].max(),
        "ess_per_s": table["ess_per_s"].min(),
        "wasserstein": table["wasserstein"].max(),
        **{name: table[name].iloc[0] for name in COST},
    }


def _joint(
    judged: Parameters, table: pd.DataFrame, base: Parameters, base_table: pd.DataFrame, seed: int
) -> dict[str, float]:
    """Distances of all parameters at once; tables are of their moments."""
    sd, center = (torch.from_numpy(base_table[name].to_numpy(copy=True)) for name in ("sd", "mean"))
    varying = sd > 0
    if not varying.any():
        return dict.fromkeys(DISTANCES, np.nan)
    most = max(LEAST, min(MOST_DRAWS, BLOCK_NUMBERS // int(varying.sum())))
    samples, enough = [], True
    for parameters, moments in ((judged, table), (base, base_table)):
        values = parameters.values[..., varying]
        kept = independent_draws(values, moments.loc[varying.numpy(), ["ess_bulk", "ess_tail"]].min(axis=None), most)
        if len(kept) < LEAST:
            kept, enough = at_most(values.flatten(0, 1), most).double(), False
        samples.append((kept - center[varying]) / sd[varying])
    first, second = samples
    generator = torch.Generator().manual_seed(seed) if enough else None
    distances = pairwise(first, second)
    energy = energy_distance(first, second, generator, distances=distances)
    discrepancy = mmd(first, second, generator, distances=distances)
    return dict(zip(DISTANCES, (*energy, *discrepancy), strict=True))
