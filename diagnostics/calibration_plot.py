"""Pictures of calibration: reliability diagrams, histograms of the PIT, and coverage by level."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from .palette import COLORS, GREY

NUM_BINS = 20
BAND = 0.99
"""Of the histogram's bars, if the PIT is uniform."""


def figure_of(table: pd.DataFrame, reliability: pd.DataFrame, pit: Mapping[str, Tensor]) -> Figure:
    """Two panels for every site, side by side; arguments as of `Calibration`."""
    sites = list(table.index.get_level_values("site").unique())
    figure = Figure(figsize=(8.0, 3.4 * len(sites)), layout="constrained")
    axes: Any = figure.subplots(len(sites), 2, squeeze=False)
    for (left, right), site in zip(axes, sites, strict=True):
        if site in pit:
            _transforms(left, pit[site].flatten().numpy())
            _coverage(right, table.loc[site])
        else:
            _diagram(left, reliability.loc[site], table.loc[site])
            _confidences(right, reliability.loc[site])
        left.set_ylabel(f"{site}: {left.get_ylabel()}" if len(sites) > 1 else left.get_ylabel())
        for axis in (left, right):
            axis.spines[["top", "right"]].set_visible(False)
    return figure


def _diagram(axis: Any, bins: pd.DataFrame, metrics: pd.DataFrame) -> None:
    full = bins[bins["count"] > 0]
    axis.plot([0, 1], [0, 1], color=GREY, linestyle="--", label="calibrated")
    axis.errorbar(
        full["confidence"], full["frequency"], 2 * full["standard_error"], color=COLORS[0], marker="o", capsize=2,
        label="observed, ± 2 standard errors",
    )  # fmt: skip
    error = metrics.loc["expected_calibration_error", "value"]
    axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="predicted probability", ylabel="observed frequency")
    axis.set_title(f"reliability: expected calibration error {error:.3f}", fontsize="medium")
    axis.legend(frameon=False, loc="lower right", fontsize="small")


def _confidences(axis: Any, bins: pd.DataFrame) -> None:
    axis.bar(bins["low"], bins["count"], bins["high"] - bins["low"], align="edge", color=COLORS[0], edgecolor="white")
    axis.set(xlim=(0, 1), xlabel="predicted probability", ylabel="rows")
    axis.set_title("how often each is predicted", fontsize="medium")


def _transforms(axis: Any, values: np.ndarray) -> None:
    from scipy.stats import binom

    expected = len(values) / NUM_BINS
    low, high = binom.interval(BAND, len(values), 1 / NUM_BINS)
    axis.hist(values, NUM_BINS, range=(0, 1), color=COLORS[4], edgecolor="white")
    axis.axhline(expected, color="black", linestyle="--", linewidth=1)
    axis.axhspan(low, high, color="black", alpha=0.12, linewidth=0, label=f"{100 * BAND:g} % of bars, if calibrated")
    axis.set(xlim=(0, 1), xlabel="PIT: share of predictive draws below", ylabel="rows")
    axis.set_title("∪: too sure; ∩: too unsure; slope: biased", fontsize="medium")
    axis.set_ylim(0, 1.25 * max(high, axis.get_ylim()[1] / 1.05))
    axis.legend(frameon=False, loc="upper right", fontsize="small")


def _coverage(axis: Any, metrics: pd.DataFrame) -> None:
    rows = metrics[metrics.index.str.startswith("coverage_")].sort_values("value")
    levels = rows.index.str.removeprefix("coverage_").astype(float).to_numpy() / 100
    order = np.argsort(levels)
    axis.plot([0, 1], [0, 1], color=GREY, linestyle="--", label="calibrated")
    axis.errorbar(
        levels[order], rows["value"].iloc[order], 2 * rows["standard_error"].iloc[order], color=COLORS[0], marker="o",
        capsize=2, label="observed, ± 2 standard errors",
    )  # fmt: skip
    axis.set(
        xlim=(-0.02, 1.02),
        ylim=(-0.02, 1.02),
        xlabel="level of the central interval",
        ylabel="share of observations in it",
    )
    axis.set_title("coverage", fontsize="medium")
    axis.legend(frameon=False, loc="lower right", fontsize="small")
