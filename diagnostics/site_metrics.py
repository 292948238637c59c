"""The metrics of one observed site: means over rows, with the standard errors that the number of rows leaves them."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyro_scale.prediction import Prediction

from .coverage import interval_coverage
from .proper_scores import brier_score, class_labels, crps
from .reliability_diagram import expected_calibration_error, reliability

logger = logging.getLogger("pyro_scale")

Metric = tuple[float, float]
"""Value and standard error."""


def probabilities_of(prediction: Prediction, site: str) -> Tensor | None:
    """Of 1, in the shape of a draw of the site, or of every class, along an axis behind it; None for other sites."""
    mean, draws = prediction.mean.get(site), prediction.draws[site]
    if mean is None:
        return None
    if mean.shape[:-1] == draws.shape[2:]:
        return mean
    zero_or_one = bool(((draws == 0) | (draws == 1)).all())
    # of what is 0 or 1, and of nothing else with such draws, the mean tells the variance
    if (
        zero_or_one
        and site in prediction.sd
        and torch.allclose(prediction.sd[site] ** 2, mean * (1 - mean), 1e-3, 1e-6)
    ):
        return mean
    return None


def of_classes(
    probabilities: Tensor, observed: Tensor, density: Tensor | None, num_bins: int
) -> tuple[dict[str, Metric], pd.DataFrame]:
    """Metrics of a site of classes, and its reliability diagram.

    Args:
        probabilities: as `probabilities_of` gives them.
        observed: labels, `(n, *event)`.
        density: log predictive density of each row; None to take that of the probabilities: the sum over the events of
            a row of the logs of their marginal probabilities, as if they were independent.
        num_bins: of the diagram.
    """
    scores = brier_score(probabilities, observed)
    if probabilities.shape == observed.shape:
        happened = observed.double()
        confidence, correct = probabilities, (probabilities >= 0.5).double() == happened
        of_observed = torch.where(happened == 1, probabilities, 1 - probabilities)
    else:
        labels = class_labels(observed, probabilities.shape[-1])
        confidence, chosen = probabilities.max(-1)
        correct = chosen == labels
        happened = correct.double()
        of_observed = probabilities.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    pairs = [each.flatten().clamp(0, 1).numpy() for each in (confidence, happened)]
    if density is None:
        density = of_observed.log().reshape(len(observed), -1).sum(1)
    metrics = {
        "log_predictive_density": _mean(density),
        "accuracy": _mean(correct.double()),
        "brier": _mean(scores),
        "expected_calibration_error": (expected_calibration_error(pairs[0], pairs[1], num_bins), math.nan),
    }
    return metrics, reliability(pairs[0], pairs[1], num_bins)


def of_numbers(
    mean: Tensor, draws: Tensor, observed: Tensor, density: Tensor | None, levels: Sequence[float]
) -> dict[str, Metric]:
    """Metrics of any other site, from its predictive mean and draws `(num_samples, n, *event)`."""
    squared, error = _mean((mean.double() - observed).square())
    metrics = {} if density is None else {"log_predictive_density": _mean(density)}
    metrics["rmse"] = (math.sqrt(squared), error / (2 * math.sqrt(squared)) if squared else 0.0)
    metrics["crps"] = _mean(crps(draws, observed))
    for level, inside in zip(levels, interval_coverage(draws, observed, levels), strict=True):
        needed = math.ceil(2 / (1 - level) - 1e-9)
        enough = len(draws) >= needed
        if not enough:
            logger.warning(
                "A central interval of %g %% takes %d predictive draws to tell its ends, and there are %d. Run with "
                "more num_samples.", 100 * level, needed, len(draws),
            )  # fmt: skip
        metrics[f"coverage_{100 * level:g}"] = _mean(inside.double()) if enough else (math.nan, math.nan)
    return metrics


def _mean(values: Tensor) -> Metric:
    """Over rows, `(n, *event)`, whose events are not independent of each other."""
    rows = values.double().reshape(len(values), -1).mean(1).cpu()
    return float(rows.mean()), float(rows.std()) / math.sqrt(len(rows)) if len(rows) > 1 else float(np.nan)
