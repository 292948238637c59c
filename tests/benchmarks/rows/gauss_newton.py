"""The diagonal of a network's Gauss-Newton matrix, beside BackPACK in laplace-torch."""

from __future__ import annotations

import numpy as np
from measure import Answers, Bench, Side, median
from results import Goal, Row, row

AGREEMENT = 1e-4
"""Relative to the largest; in float32."""


def measure(bench: Bench) -> list[Row]:
    given = {"network": "mlp", "number": bench.steps(100, 5)}
    ours, theirs = bench.alternate(
        5, *(Side(f"{who}.gauss_newton", {**given, "draws": str(bench.work / who)}) for who in ("ours", "peers"))
    )
    mine, peers = (median(answers, "batch_milliseconds") for answers in (ours, theirs))
    return [
        row(
            "MLP 784-256-256-10, batch 128, float32: ms for the diagonal of the Gauss-Newton matrix",
            f"{mine:.3g} ms",
            f"laplace-torch with BackPACK {peers:.3g} ms",
            by_turns(ours, theirs, "batch_milliseconds"),
            Goal("<=", 1),
            disagreement=different(ours, theirs),
        )
    ]


def by_turns(ours: Answers, theirs: Answers, key: str) -> float:
    """The median of the ratios of runs that came one after the other."""
    ratios = [{key: mine[key] / peer[key]} for mine, peer in zip(ours, theirs, strict=True)]
    return median(ratios, key)


def different(ours: Answers, theirs: Answers) -> str | None:
    """Whether what the scripts left are other numbers."""
    mine, peers = (np.load(answers[0]["draws"]) for answers in (ours, theirs))
    error = float(np.abs(mine - peers).max() / np.abs(peers).max())
    return f"numbers differ by {error:.2g} of the largest" if not error <= AGREEMENT else None
