"""The linearised predictive distribution of a network at 10,000 inputs, beside laplace-torch."""

from __future__ import annotations

from measure import Bench, Side, median
from results import Goal, Row, row

from .gauss_newton import by_turns, different


def measure(bench: Bench) -> list[Row]:
    number = bench.steps(10_000, 100)
    given = {"network": "small", "number": number}
    ours, theirs = bench.alternate(
        3, *(Side(f"{who}.linearized", {**given, "draws": str(bench.work / f"{who}_linearized")}) for who in WHO)
    )
    mine, peers = (median(answers, "seconds") for answers in (ours, theirs))
    return [
        row(
            f"MLP 784-32-10, float32: s of the processor for linearised predictions of {number:,} inputs, diagonal "
            "Laplace, probit link",
            f"{mine:.3g} s",
            f"laplace-torch with BackPACK, blocks of 100, {peers:.3g} s",
            by_turns(ours, theirs, "seconds"),
            Goal("<=", 1),
            disagreement=different(ours, theirs),
        )
    ]


WHO = ("ours", "peers")
