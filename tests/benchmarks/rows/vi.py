"""A step of mean-field variational inference of a network, beside its gradient, on the clocks of their threads."""

from __future__ import annotations

from measure import Bench, Side, median
from results import Goal, Row, row

from .gauss_newton import by_turns

# whose time is counted, in words, and its key
COUNTED = [("a second core for the noise", "thread_milliseconds"), ("noise included", "processor_milliseconds")]


def measure(bench: Bench) -> list[Row]:
    given = {"network": "mlp", "method": "vi_diag", "num_steps": bench.steps(400, 10)}
    ours, torch = bench.alternate(5, Side("ours.network", given), Side("peers.gradient", given))
    rows = []
    for words, key in COUNTED:
        theirs = [{key: answer["processor_milliseconds"]} for answer in torch]
        rows.append(
            row(
                f"MLP 784-256-256-10, batch 128, float32: ms of the processor for a step of vi_diag; {words}",
                f"{median(ours, key):.3g} ms",
                f"torch, forward and backward, {median(theirs, key):.3g} ms",
                by_turns(ours, theirs, key),
                Goal("<=", 1.5),
            )
        )
    return rows
