"""Logistic regression on a million rows: effective draws a second, SGHMC beside NUTS on all rows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from agreement import bulk_ess, disagreement, pooled
from measure import Answers, Bench, Side, median
from results import Goal, Row, row, spent

COVARIATES = 20
CORRELATION = 0.5
"""Between neighbours; it falls off by powers."""
# all else is chosen by warm-up
SETTINGS = {"step_size": None, "friction": 1.0, "batch_size": 512, "thinning": None, "warmup_steps": None}


class Normal(NamedTuple):
    """The posterior: with a million rows it is normal around its mode, to a tenth of a percent of its sds."""

    mean: np.ndarray
    sd: np.ndarray


def measure(bench: Bench) -> list[Row]:
    path = bench.work / "million.npz"
    x, y = make(bench.steps(1_000_000, 10_000))
    np.savez(path, x=x, y=y)
    normal = laplace(x.astype(float), y.astype(float))
    given = {"data": str(path), "seed": 0}
    # NUTS starts at the mode and is not charged with the search for it; ours searches
    mode = normal.mean.astype(np.float32).tolist()
    chain = {**SETTINGS, "num_samples": bench.steps(2000, 200), "num_chains": 4, "initial": None}
    draws = {name: str(bench.work / f"million.{name}") for name in ("ours", "pyro", "numpyro")}
    few = {"model": "logistic", "initial": {"w": mode}, "num_samples": 100, "warmup_steps": 100}
    ours, pyro, numpyro = bench.alternate(
        2,
        Side("ours.sghmc", {**given, **chain, "draws": draws["ours"]}),
        Side("peers.pyro_nuts", {**given, **few, "draws": draws["pyro"]}),
        Side("peers.numpyro_nuts", {**given, **few, "draws": draws["numpyro"]}),
    )
    mine = ess_per_second(ours)
    rows = []
    for name, answers, goal in (("Pyro", pyro, 50), ("NumPyro", numpyro, 10)):
        theirs = ess_per_second(answers)
        rows.append(
            row(
                f"logistic regression, {len(x):.0e} rows, {COVARIATES} covariates, whole process: ESS a second",
                f"{mine:.3g}",
                f"NUTS of {name}, 100 + 100 iterations in {median(answers, 'process_seconds'):.0f} s: {theirs:.3g}",
                mine / theirs,
                Goal(">=", goal),
                disagreement=disagreement("pyro_scale", pooled(ours), *normal)
                or disagreement(name, pooled(answers), *normal),
                profile=spent(ours),
            )
        )
    return rows


def ess_per_second(answers: Answers) -> float:
    """Of the coefficient that has the least, over all runs and all of their seconds."""
    return float(bulk_ess(pooled(answers)).min() / sum(answer["process_seconds"] for answer in answers))


def make(num_data: int) -> tuple[np.ndarray, np.ndarray]:
    """Correlated normal covariates of unit variance, float32, and outcomes."""
    generator = np.random.default_rng(0)
    apart = np.abs(np.subtract.outer(np.arange(COVARIATES), np.arange(COVARIATES)))
    factor = np.linalg.cholesky(CORRELATION**apart).astype(np.float32)
    x = generator.standard_normal((num_data, COVARIATES), dtype=np.float32) @ factor.T
    coefficients = generator.normal(0, 0.3, COVARIATES)
    y = generator.random(num_data) < 1 / (1 + np.exp(-x @ coefficients))
    return x, y.astype(np.float32)


def laplace(x: np.ndarray, y: np.ndarray) -> Normal:
    """Mode by Newton's method, and sds by the Hessian there, under standard normal priors."""
    w = np.zeros(x.shape[1])
    for _ in range(10):
        p = 1 / (1 + np.exp(-x @ w))
        hessian = (x.T * (p * (1 - p))) @ x + np.eye(len(w))
        w = w + np.linalg.solve(hessian, x.T @ (y - p) - w)
    return Normal(w, np.sqrt(np.linalg.inv(hessian).diagonal()))
