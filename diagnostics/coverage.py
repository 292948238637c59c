"""Whether observations fall where predictive draws say: coverage of intervals, and probability integral transforms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_scale.arrays import as_numbers
from pyro_scale.errors import ArgumentError

from .proper_scores import check_draws, in_blocks


def interval_coverage(draws: Any, observed: Any, levels: Sequence[float] = (0.5, 0.8, 0.9, 0.95)) -> Tensor:
    """Whether each observation lies in the central intervals of its draws.

    The interval of level l is that between the quantiles (1 - l) / 2 and (1 + l) / 2, with its ends. Its mean over rows
    is to be about l, of few draws too: the i-th of S sorted draws is the quantile i / (S + 1), below which an
    observation of the same law lies so often (Weibull's places; Hyndman & Fan (1996), Sample quantiles in statistical
    packages, The American Statistician, definition 6). Of levels above (S - 1) / (S + 1) the interval ends at the
    outermost draws and is too narrow; of counts, whose intervals cannot be cut to measure, it is too wide.

    Args:
        draws: `(num_samples, ...)`, of the predictive distribution.
        observed: `(...)`.
        levels: between 0 and 1.

    Returns:
        `(levels, ...)`, boolean.

    Example:
        >>> interval_coverage([[0.0], [1.0], [2.0], [3.0]], [2.9], [0.5, 0.6])
        tensor([[False],
                [ True]])
    """
    if not levels or not all(0 < level < 1 for level in levels):
        raise ArgumentError(f"levels are {list(levels)}; each must be between 0 and 1, as 0.9.")
    draws, observed = as_numbers("draws", draws), as_numbers("observed", observed)
    check_draws(draws, observed)
    parts = []
    for values, seen in in_blocks(draws, observed):
        ordered = values.sort(0).values
        ends = [[_quantile(ordered, share) for share in ((1 - level) / 2, (1 + level) / 2)] for level in levels]
        parts.append(torch.stack([(low <= seen) & (seen <= high) for low, high in ends]))
    return torch.cat(parts, -1).reshape(len(levels), *observed.shape)


def pit(draws: Any, observed: Any, generator: torch.Generator) -> Tensor:
    """Probability integral transform: where each observation lies among its draws, from 0 to 1.

    If observation and draws have the same law, it is uniform, exactly: the rank of the observation among S draws and
    itself, with u uniform between ranks, and over those of equal values. For counts: Czado, Gneiting & Held (2009),
    Predictive model assessment for count data, Biometrics.

    Args:
        draws: `(num_samples, ...)`, of the predictive distribution.
        observed: `(...)`.
        generator: of u.
    """
    draws, observed = as_numbers("draws", draws), as_numbers("observed", observed)
    check_draws(draws, observed)
    pairs = in_blocks(draws, observed)
    counts = [((values < seen).sum(0).cpu(), (values == seen).sum(0).cpu()) for values, seen in pairs]
    below, equal = (torch.cat(each).reshape(observed.shape) for each in zip(*counts, strict=True))
    u = torch.rand(observed.shape, generator=generator, dtype=torch.float64, device="cpu")
    found: Tensor = (below + u * (1 + equal)) / (1 + len(draws))
    return found


def _quantile(ordered: Tensor, share: float) -> Tensor:
    """Of sorted values, interpolated between Weibull's places."""
    place = min(max(share * (len(ordered) + 1) - 1, 0.0), len(ordered) - 1.0)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return torch.lerp(ordered[below], ordered[above], place - below)
