"""NUTS on all rows: gradients a second on Pima, and ESS a second where coefficients are correlated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from agreement import bulk_ess, disagreement, pooled
from measure import Answers, Bench, Side, median
from pyro_scale.models import pima
from results import Goal, Row, row

Arrays = dict[str, np.ndarray]


def measure(bench: Bench) -> list[Row]:
    data = {name: value.numpy() for name, value in pima().data.items()}
    stock, pyro, nutpie = runs(bench, "pima", "logistic", data, 3)
    mean, sd = (value.numpy() for value in pima().reference["w"])
    rows = []
    for name, mine, goal in (("Pyro's", pyro, 1.4), ("nutpie's", nutpie, 4.5)):
        ours, theirs = (median(answers, "gradients_per_second") for answers in (mine, stock))
        rows.append(
            row(
                f"Pima, NUTS, {name} sampler: gradients a second",
                f"{ours:.0f}",
                f"Pyro {theirs:.0f}",
                ours / theirs,
                Goal(">=", goal),
                disagreement=disagreement("ours", pooled(mine), mean, sd)
                or disagreement("Pyro", pooled(stock), mean, sd),
            )
        )
    for name, make in CORRELATED.items():
        found = runs(bench, name, "linear", make(), 2)
        rows += correlated(name, *found)
    return rows


def runs(bench: Bench, name: str, model: str, data: Arrays, repeats: int) -> list[Answers]:
    """Answers of stock Pyro, and of ours with either sampler."""
    path: Path = bench.work / f"{name}.npz"
    np.savez(path, **data)
    num = bench.steps(500, 100)

    def side(module: str, **settings: Any) -> Side:
        draws = str(bench.work / f"{name}.{module}.{settings}")
        given = {
            "model": model,
            "data": str(path),
            "draws": draws,
            "num_samples": num,
            "warmup_steps": num,
            "seed": 0,
            "initial": {},
        }
        return Side(module, given | settings)

    return bench.alternate(
        repeats, side("peers.pyro_nuts"), side("ours.nuts", sampler="pyro"), side("ours.nuts", sampler="nutpie")
    )


def correlated(name: str, stock: Answers, pyro: Answers, nutpie: Answers) -> list[Row]:
    """Two lines; the draws of all three must agree, those of nutpie taken for the posterior."""
    reference = pooled(nutpie)
    mean, sd = reference.mean((0, 1)), reference.std((0, 1))
    rows = []
    for sampler, mine in (("Pyro's", pyro), ("nutpie's", nutpie)):
        ours, theirs = (ess_per_second(answers) for answers in (mine, stock))
        rows.append(
            row(
                f"{name}, NUTS, {sampler} sampler: least bulk ESS a second of sampling, warm-up included",
                f"{ours:.3g}",
                f"Pyro {theirs:.3g}",
                ours / theirs,
                Goal(">=", 5),
                disagreement=disagreement("ours", pooled(mine), mean, sd)
                or disagreement("Pyro", pooled(stock), mean, sd),
            )
        )
    return rows


def ess_per_second(answers: Answers) -> float:
    """Of the parameter that has the least, over all runs."""
    return float(bulk_ess(pooled(answers)).min() / sum(answer["seconds"] for answer in answers))


def trend() -> Arrays:
    """62 yearly temperatures on the years since 1900, which are not centred: slope and intercept at -0.98."""
    generator = np.random.default_rng(0)
    years = np.arange(52.0, 114.0)
    x = np.stack([np.ones_like(years), years], -1)
    return {"x": x, "y": x @ [5.0, 0.05] + generator.normal(size=len(x))}


def unscaled() -> Arrays:
    """300 rows of an intercept and four covariates, correlated at 0.9, with means and sds from 1 to 30."""
    generator = np.random.default_rng(0)
    shared, own = generator.normal(size=(300, 1)), generator.normal(size=(300, 4))
    covariates = (np.sqrt(0.9) * shared + np.sqrt(0.1) * own) * [1.0, 3.0, 10.0, 30.0] + [2.0, 6.0, 20.0, 60.0]
    x = np.concatenate([np.ones((300, 1)), covariates], -1)
    return {"x": x, "y": x @ [1.0, 1.0, 0.3, 0.1, 0.03] + 2 * generator.normal(size=300)}


CORRELATED: dict[str, Callable[[], Arrays]] = {"trend": trend, "unscaled covariates": unscaled}
