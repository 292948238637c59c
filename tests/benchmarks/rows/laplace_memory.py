"""The memory that Laplace's approximations of a network of the size of ResNet-18 take."""

from __future__ import annotations

from measure import Bench, Side
from results import Goal, Row, row


def measure(bench: Bench) -> list[Row]:
    rows = []
    for structure in ("diagonal", "Kronecker"):
        given = {"network": "resnet", "structure": structure, "num_data": bench.steps(64, 32)}
        found = bench.run(Side("ours.laplace_memory", given))
        gigabytes = found["bytes_held"] / 1e9
        rows.append(
            row(
                f"residual network of {found['num_weights'] / 1e6:.1f} million weights, images of 32 x 32, blocks of "
                f"32: {structure} Laplace, peak memory of the process",
                f"{gigabytes:.2f} GB",
                "none",
                gigabytes,
                Goal("<=", 6, "GB"),
                disagreement=None if found["finite"] else "the covariance is not finite",
                profile=f"{found['seconds']:.0f} s for {given['num_data']} rows",
            )
        )
    return rows
