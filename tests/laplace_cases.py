"""What the tests of Laplace's approximation share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pyro_scale import tree
from pyro_scale.types import Gaussian

PRIOR_PRECISION, SIGMA = 1.7, 0.6
OUTPUTS = {"classification": 3, "regression": 2}


def mlp(outputs: int) -> nn.Module:
    return nn.Sequential(*[nn.Linear(2, 4, device="meta"), nn.Tanh(), nn.Linear(4, outputs, device="meta")])


def conv(outputs: int) -> nn.Module:
    first = nn.Conv2d(1, 2, 3, padding=1, stride=2, device="meta")
    return nn.Sequential(first, nn.Tanh(), nn.Flatten(), nn.Linear(8, outputs, device="meta"))


NETWORKS: dict[str, Any] = {"mlp": mlp, "conv": conv}


def covariance_of(gaussian: Gaussian) -> Tensor:
    """Of the sites that move, from `spread`."""
    mean = getattr(gaussian, "gaussian", gaussian).mean
    size = tree.size(mean)
    rows = tree.unravel(torch.eye(size, dtype=torch.float64), tree.shapes(mean))
    factor = tree.flat(gaussian.spread(rows), tree.shapes(mean))
    return factor @ factor.T


def precision_of(gaussian: Gaussian) -> Tensor:
    """The inverse of `covariance_of`."""
    return torch.linalg.inv(covariance_of(gaussian))
