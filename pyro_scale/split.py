r"""Predictive uncertainty, split into what data of this kind keep and what more data would remove.

With $p_s$ the predictive distribution of draw s and $\bar p$ the mean of all, the entropy of a class is split as

$$H(\bar p) = \frac1S \sum_s H(p_s) + I,$$

where the mutual information I of class and parameters is 0 if all draws agree, and the variance of a number as

$$\operatorname{Var}(y) = \frac1S \sum_s \sigma_s^2 + \operatorname{Var}_s(\mu_s).$$

References:
    Depeweg, Hernández-Lobato, Doshi-Velez & Udluft (2018), Decomposition of uncertainty in Bayesian deep learning for
    efficient and risk-sensitive learning, ICML, section 3.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_scale.errors import ArgumentError

ROUNDING = 1e-3
"""By how much probabilities may miss a sum of 1."""


class Uncertainty(NamedTuple):
    """Parts of the uncertainty of a prediction; `total` is the sum of the other two.

    Attributes:
        total: entropy in nats, or variance in squared units.
        aleatoric: what data of this kind keep, however well the parameters are known.
        epistemic: what more data would remove; at least 0.
    """

    total: Tensor
    aleatoric: Tensor
    epistemic: Tensor


def uncertainty(values: Any, variances: Any = None) -> Uncertainty:
    """Splits the uncertainty of predictions of which every draw gives class probabilities, or a mean and a variance.

    Args:
        values: probabilities `(num_samples, ..., classes)`, which sum to 1 along the last axis, or means
            `(num_samples, ...)`; a tensor or array.
        variances: of every draw's predictive distribution, `(num_samples, ...)`, at least 0; None for probabilities.

    Returns:
        Each part `(...)`: entropies and mutual information in nats, or variances.

    Raises:
        ArgumentError: shapes that differ, no draws, negative variances, or values that are no probabilities.

    Example:
        >>> torch.set_printoptions(precision=2)
        >>> split = uncertainty([[[0.5, 0.5], [1.0, 0.0]], [[0.5, 0.5], [0.0, 1.0]]])
        >>> split.total, split.epistemic  # the draws agree on the first row, and contradict each other on the second
        (tensor([0.69, 0.69]), tensor([0.00, 0.69]))
        >>> torch.set_printoptions(profile="default")
    """
    values = _numbers("values", values)
    if variances is None:
        _check_probabilities(values)
        average = values.mean(0)
        return of_entropies(_entropy(average), _entropy(values).mean(0))
    variances = _numbers("variances", variances)
    if variances.shape != values.shape:
        raise ArgumentError(
            f"Means have shape {tuple(values.shape)} and variances {tuple(variances.shape)}; every draw needs both."
        )
    if bool((variances < 0).any()):
        raise ArgumentError(f"The smallest of the variances is {float(variances.min()):.3g}; none may be negative.")
    return of_variances(variances.mean(0), values.var(0, correction=0))


def of_entropies(total: Tensor, aleatoric: Tensor) -> Uncertainty:
    """From the entropy of the mean prediction, and the mean of the draws' entropies."""
    return Uncertainty(total, aleatoric, (total - aleatoric).clamp(min=0))


def of_variances(aleatoric: Tensor, epistemic: Tensor) -> Uncertainty:
    """From the mean of the draws' variances, and the variance of their means."""
    epistemic = epistemic.clamp(min=0)
    return Uncertainty(aleatoric + epistemic, aleatoric, epistemic)


def _entropy(probabilities: Tensor) -> Tensor:
    return -torch.xlogy(probabilities, probabilities).sum(-1)


def _numbers(name: str, values: Any) -> Tensor:
    numbers = torch.as_tensor(values)
    if not numbers.is_floating_point():
        numbers = numbers.double()
    if numbers.ndim == 0 or len(numbers) == 0:
        raise ArgumentError(
            f"{name} have shape {tuple(numbers.shape)}; they must have draws along their first axis, at least one."
        )
    return numbers


def _check_probabilities(values: Tensor) -> None:
    if values.ndim < 2:
        raise ArgumentError(
            f"values have shape {tuple(values.shape)}; class probabilities have draws along the first axis and classes "
            "along the last. For means, pass variances too."
        )
    sums = values.sum(-1)
    if not bool(((sums - 1).abs() <= ROUNDING).all()) or bool((values < 0).any()):
        raise ArgumentError(
            f"Values along the last axis sum to {float(sums.min()):.3g} to {float(sums.max()):.3g}, the smallest is "
            f"{float(values.min()):.3g}; class probabilities sum to 1. For one probability p of two classes pass "
            "torch.stack([1 - p, p], -1); for means pass variances too."
        )
