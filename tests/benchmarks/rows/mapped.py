"""From 10,000 to 100 million rows in a file: what a step and the gather of its rows cost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from measure import Bench, Side, median
from results import Goal, Row, row

COLUMNS = 4
BLOCK_ROWS = 1_000_000


def measure(bench: Bench) -> list[Row]:
    sizes = [10**power for power in (range(4, 7) if bench.quick else range(4, 9))]
    files = write(bench.work, sizes[-1])

    def side(num_data: int, network: bool) -> Side:
        steps = bench.steps(2_000, 50) if network else bench.steps(40_000, 1_000)  # a pass through 10 million rows
        given = {**files, "columns": COLUMNS, "num_data": num_data, "num_steps": steps, "network": network, "seed": 0}
        return Side("ours.mapped", given)

    found = bench.alternate(2, *(side(size, network=False) for size in sizes))
    few, many = bench.alternate(1, side(sizes[0], network=True), side(sizes[-1], network=True))
    first, gather = (median(found[0], key) for key in ("step_microseconds", "plain_microseconds"))
    rows = []
    for size, answers in zip(sizes[1:], found[1:], strict=True):
        step, more = median(answers, "step_microseconds"), median(answers, "plain_microseconds") - gather
        rows.append(
            row(
                f"{size:.0e} rows of a mapped file, logistic regression, batch 256: µs a step",
                f"{step:.3g} µs",
                f"1e4 rows: {first:.3g} µs, and {more:.3g} µs that a plain gather takes longer here than there",
                step / (first + more),
                Goal("<=", 1.1),
            )
        )
    for size, answers in zip(sizes, found, strict=True):
        ours, plain = median(answers, "gather_microseconds"), median(answers, "plain_microseconds")
        work = f"{size:.0e} rows of a mapped file: µs to gather 256"
        rows.append(row(work, f"{ours:.3g} µs", f"X[idx], y[idx] {plain:.3g} µs", ours / plain, Goal("<=", 1.2)))
    small, large = (median(answers, "step_microseconds") / 1e3 for answers in (few, many))
    work = f"{sizes[-1]:.0e} rows of a mapped file, network 4-128-128-1, batch 256: ms a step"
    rows.append(row(work, f"{large:.3g} ms", f"1e4 rows: {small:.3g} ms", large / small, Goal("<=", 1.1)))
    return rows


def write(folder: Path, num_data: int) -> dict[str, str]:
    """Covariates and outcomes, written block by block; smaller data are the first rows of the same files."""
    files = {"x": str(folder / "x.bin"), "y": str(folder / "y.bin")}
    x = np.memmap(files["x"], np.float32, "w+", shape=(num_data, COLUMNS))
    y = np.memmap(files["y"], np.float32, "w+", shape=(num_data,))
    generator = np.random.default_rng(0)
    for start in range(0, num_data, BLOCK_ROWS):
        block = slice(start, min(start + BLOCK_ROWS, num_data))
        x[block] = generator.standard_normal((block.stop - start, COLUMNS), dtype=np.float32)
        y[block] = generator.random(block.stop - start) < 1 / (1 + np.exp(-x[block].sum(-1)))
    x.flush()
    y.flush()
    return files
