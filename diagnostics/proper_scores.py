"""Proper scores of predictions: least, on average, for who predicts the law that the observations have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pyro_scale.arrays import as_numbers
from pyro_scale.errors import ArgumentError

BLOCK_NUMBERS = 2**22
"""Of draws that are sorted at once."""


def brier_score(probabilities: Any, labels: Any) -> Tensor:
    r"""Brier score of rows: $(p - y)^2$, or of several classes $\sum_k (p_k - 1[y = k])^2$.

    Brier (1950), Verification of forecasts expressed in terms of probability, Monthly Weather Review; his score of two
    classes is twice that above.

    Args:
        probabilities: of label 1, `(n, ...)`; or of every class, `(n, ..., classes)`.
        labels: `(n, ...)`: 0 or 1; or whole numbers from 0 to classes - 1.

    Returns:
        `(n, ...)`, from 0 to 1, or to 2 of several classes.

    Raises:
        ArgumentError: shapes that do not fit, or labels that are no class.

    Example:
        >>> brier_score([[0.2, 0.8], [0.2, 0.8]], [1, 0])
        tensor([0.0800, 1.2800], dtype=torch.float64)
    """
    probabilities, labels = _floating("probabilities", probabilities), as_numbers("labels", labels)
    if probabilities.shape == labels.shape:
        if not bool(((labels == 0) | (labels == 1)).all()):
            raise ArgumentError(
                "Labels of one probability each must be 0 or 1; for more classes pass that of every one."
            )
        return torch.square(probabilities - labels.to(probabilities))
    if probabilities.shape[:-1] != labels.shape:
        raise ArgumentError(
            f"probabilities have shape {tuple(probabilities.shape)} and labels {tuple(labels.shape)}; the former must "
            "have the shape of the labels, or that with the classes along a last axis."
        )
    happened = torch.nn.functional.one_hot(class_labels(labels, probabilities.shape[-1]), probabilities.shape[-1])
    return torch.square(probabilities - happened.to(probabilities)).sum(-1)


def class_labels(labels: Tensor, num_classes: int) -> Tensor:
    """Labels as whole numbers; raises `ArgumentError` unless each is one of the classes."""
    whole = labels.long()
    if not bool((whole == labels).all()) or bool(((whole < 0) | (whole >= num_classes)).any()):
        odd = labels[(whole != labels) | (whole < 0) | (whole >= num_classes)]
        raise ArgumentError(
            f"Label {odd.flatten()[0].item()} is none of the {num_classes} classes that are predicted, 0 to "
            f"{num_classes - 1}. Number the classes from 0, and fit a model with a probability for each."
        )
    return whole


def crps(draws: Any, observed: Any) -> Tensor:
    r"""Continuous ranked probability score of every row, of the distribution F that its draws are from.

    $$\int (F(x) - 1[x \ge y])^2 dx = \mathbb{E} |x - y| - \frac12 \mathbb{E} |x - x'|
        \approx \frac1S \sum_s |x_s - y| - \frac1{2 S (S - 1)} \sum_{s, t} |x_s - x_t|:$$

    Gneiting & Raftery (2007), Strictly proper scoring rules, prediction, and estimation, JASA, equations 20 and 21. The
    estimate is unbiased for independent draws, so that few are not scored worse than many, and may be below 0: Ferro
    (2014), Fair scores for ensemble forecasts, Quarterly Journal of the Royal Meteorological Society. In the units of
    the observations; of a single draw its distance, of counts the ranked probability score.

    Args:
        draws: `(num_samples, ...)`, of the predictive distribution.
        observed: `(...)`.

    Raises:
        ArgumentError: shapes that do not fit.

    Example:
        >>> crps([[0.0], [2.0]], [3.0])
        tensor([1.], dtype=torch.float64)
    """
    draws, observed = as_numbers("draws", draws), as_numbers("observed", observed)
    check_draws(draws, observed)
    number = len(draws)
    # of sorted draws, the sum of all differences has these weights
    weights = (2 * torch.arange(1, number + 1, dtype=torch.float64) - number - 1) / (number * max(1, number - 1))
    parts = []
    for values, seen in in_blocks(draws, observed):
        away = (values - seen).abs().mean(0)
        parts.append(away - weights.to(values) @ values.sort(0).values)
    return torch.cat(parts).reshape(observed.shape)


def in_blocks(draws: Tensor, observed: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Draws `(num_samples, n)` and observations `(n,)` of some rows after others, in double precision."""
    size = max(1, BLOCK_NUMBERS // len(draws))
    flat = draws.reshape(len(draws), -1)
    for values, seen in zip(flat.split(size, -1), observed.reshape(-1).split(size), strict=True):
        yield values.double(), seen.to(values.device).double()


def check_draws(draws: Tensor, observed: Tensor) -> None:
    """Raises `ArgumentError` unless there are draws of what was observed."""
    if draws.ndim == 0 or len(draws) == 0 or draws.shape[1:] != observed.shape:
        raise ArgumentError(
            f"draws have shape {tuple(draws.shape)} and observations {tuple(observed.shape)}; draws must have the "
            "shape of the observations with an axis of draws in front: those of a Prediction by flatten(0, 1)."
        )


def _floating(name: str, values: Any) -> Tensor:
    found = as_numbers(name, values)
    return found if found.is_floating_point() else found.double()
