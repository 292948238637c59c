"""How far posteriors are from a reference, parameter by parameter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from pyro_scale.errors import ArgumentError
from pyro_scale.posterior import Posterior

COLUMNS = ["mean", "sd", "mean_error", "mcse", "z", "sd_ratio", "ess_bulk", "r_hat", "seconds", "ess_per_s"]


def compare(*posteriors: Posterior, reference: Posterior | None = None) -> pd.DataFrame:
    """A table of means, sds and their errors, with the effort that went into them.

    Args:
        posteriors: what to judge; labelled by method, and numbered where methods repeat.
        reference: what to judge by, as from `nuts`; None takes the first posterior.

    Returns:
        One row a scalar parameter that the posteriors share with the reference, and one named "all" (the worst
        error, ratio, ESS and R-hat) for each posterior, the reference included. Columns:

        mean, sd: of the draws.
        mean_error: mean minus the reference's mean, in reference sds; at "all" the largest in absolute value.
        mcse: Monte Carlo standard error of mean_error, that of the reference included, in reference sds.
        z: mean_error / mcse; beyond 3 or so it is more than chance. At "all" the largest in absolute value.
        sd_ratio: sd / reference sd; at "all" the one farthest from 1.
        ess_bulk, r_hat: of ArviZ; R-hat is NaN for a single chain.
        seconds: of the whole run, compilation included.
        ess_per_s: ess_bulk / seconds; at "all" of the smallest ESS.

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
    everyone = list(posteriors) if reference is None else [reference, *posteriors]
    if len(everyone) < 2:
        raise ArgumentError(f"compare got {len(everyone)} posterior; it needs one to judge and one to judge by.")
    for posterior in everyone:
        if not isinstance(posterior, Posterior):
            raise ArgumentError(f"compare got a {type(posterior).__name__}; it takes posteriors, as infer returns.")
    tables = [_moments(posterior) for posterior in everyone]
    shared = [name for name in tables[0].index if all(name in table.index for table in tables)]
    if not shared:
        raise ArgumentError(
            f"The posteriors have no parameter in common: {list(tables[0].index)[:5]} and {list(tables[1].index)[:5]}."
        )
    base = tables[0].loc[shared]
    labels = _labels(everyone)
    judged = [
        _judge(table.loc[shared], base, posterior, is_base=table is tables[0])
        for table, posterior in zip(tables, everyone, strict=True)
    ]
    return pd.concat(dict(zip(labels, judged, strict=True)), names=["posterior", "parameter"])[COLUMNS]


def _moments(posterior: Posterior) -> pd.DataFrame:
    """Mean, sd, MCSE, ESS and R-hat of every scalar parameter."""
    import arviz as az

    rows = {}
    for name, value in posterior.draws.items():
        draws = value.detach().double().cpu().numpy()
        for index in np.ndindex(draws.shape[2:]):
            label = f"{name}[{', '.join(map(str, index))}]" if index else name
            chains = draws[(slice(None), slice(None), *index)]
            enough = chains.shape[1] >= 4
            with np.errstate(all="ignore"):  # a parameter that does not vary
                ess, ess_mean = (float(az.ess(chains, method=m)) if enough else np.nan for m in ("bulk", "mean"))
                rhat = float(az.rhat(chains)) if enough and len(chains) > 1 else np.nan
            sd = float(chains.std(ddof=1)) if chains.size > 1 else np.nan
            mean = float(chains.mean())
            rows[label] = {"mean": mean, "sd": sd, "mcse_mean": sd / ess_mean**0.5, "ess_bulk": ess, "r_hat": rhat}
    return pd.DataFrame.from_dict(rows, orient="index")


def _judge(table: pd.DataFrame, base: pd.DataFrame, posterior: Posterior, *, is_base: bool) -> pd.DataFrame:
    out = table.copy()
    out["mean_error"] = (table["mean"] - base["mean"]) / base["sd"]
    out["sd_ratio"] = table["sd"] / base["sd"]
    variance = base["mcse_mean"] ** 2 + (0 if is_base else table["mcse_mean"] ** 2)
    out["mcse"] = np.sqrt(variance) / base["sd"]
    out["z"] = out["mean_error"] / out["mcse"]
    out["seconds"] = sum(posterior.timing.values()) or float("nan")
    out["ess_per_s"] = out["ess_bulk"] / out["seconds"]
    worst = _farthest(out["mean_error"].abs())
    total = {
        "mean_error": out.loc[worst, "mean_error"],
        "mcse": out.loc[worst, "mcse"],
        "z": out.loc[_farthest(out["z"].abs()), "z"],
        "sd_ratio": out.loc[_farthest(out["sd_ratio"].sub(1).abs()), "sd_ratio"],
        "ess_bulk": out["ess_bulk"].min(),
        "r_hat": out["r_hat"].max(),
        "seconds": out["seconds"].iloc[0],
        "ess_per_s": out["ess_per_s"].min(),
    }
    return pd.concat([out, pd.DataFrame({"all": total}).T])


def _farthest(distances: pd.Series) -> Any:
    """Where they are largest; anywhere if none is known, as for a single draw or a reference that does not vary."""
    return distances.idxmax() if distances.notna().any() else distances.index[0]


def _labels(posteriors: list[Posterior]) -> list[str]:
    names = [str(posterior.settings.get("method", "unknown")) for posterior in posteriors]
    return [name if names.count(name) == 1 else f"{name} {1 + names[:i].count(name)}" for i, name in enumerate(names)]
