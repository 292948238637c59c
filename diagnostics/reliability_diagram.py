"""Whether what is given a probability happens as often: reliability diagrams, and the calibration error."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from pyro_scale.arrays import as_numbers
from pyro_scale.checks import check_count
from pyro_scale.errors import ArgumentError


def reliability(confidence: Any, happened: Any, num_bins: int = 15) -> pd.DataFrame:
    """How often things happened that were given about the same probability.

    Args:
        confidence: probabilities, `(n,)`.
        happened: whether it did, `(n,)`: 0 or 1.
        num_bins: of equal width; each includes its upper end.

    Returns:
        One row a bin: `low` and `high`, its `count`, the mean `confidence` in it, the `frequency` with which it
        happened, and the binomial `standard_error` that this one has if predictions are calibrated, which is not 0
        where something always or never happened. The last three are NaN of an empty bin.

    Raises:
        ArgumentError: shapes that do not fit, or values that are no probabilities.

    Example:
        >>> reliability([0.1, 0.15, 0.9], [0, 1, 1], num_bins=2)["frequency"].tolist()
        [0.5, 1.0]
    """
    num_bins = check_count("num_bins", num_bins, 1)
    pairs = {"confidence": confidence, "happened": happened}
    confidence, happened = (as_numbers(name, each).double().cpu().numpy() for name, each in pairs.items())
    if confidence.shape != happened.shape or confidence.ndim != 1 or len(confidence) == 0:
        raise ArgumentError(
            f"confidence has shape {confidence.shape} and happened {happened.shape}; both must be (n,), at least 1."
        )
    if not ((confidence >= 0) & (confidence <= 1)).all() or not np.isin(happened, (0, 1)).all():
        raise ArgumentError(
            f"confidence ranges from {confidence.min():.3g} to {confidence.max():.3g} and happened from "
            f"{happened.min():.3g} to {happened.max():.3g}; these must be probabilities, and 0 or 1."
        )
    edges = np.linspace(0, 1, num_bins + 1)
    place = np.searchsorted(edges[1:-1], confidence)
    count = np.bincount(place, minlength=num_bins)
    with np.errstate(invalid="ignore"):
        mean, frequency = (np.bincount(place, each, num_bins) / count for each in (confidence, happened))
        error = np.sqrt(mean * (1 - mean) / count)
    columns = {"low": edges[:-1], "high": edges[1:], "count": count, "confidence": mean, "frequency": frequency}
    return pd.DataFrame({**columns, "standard_error": error}).rename_axis("bin")


def expected_calibration_error(confidence: Any, happened: Any, num_bins: int = 15) -> float:
    """Mean distance of confidence and frequency over the bins of `reliability`, weighted by their counts.

    Guo, Pleiss, Sun & Weinberger (2017), On calibration of modern neural networks, ICML, equation 3. Positive even for
    perfect predictions, by chance: about the mean standard error of the bins.
    """
    table = reliability(confidence, happened, num_bins)
    away = (table["confidence"] - table["frequency"]).abs()
    return float((table["count"] * away).sum() / table["count"].sum())
