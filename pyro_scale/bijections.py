"""Bijections to the support of a site: shapes of what they map, and their Jacobians."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import AffineTransform, ComposeTransform, IndependentTransform


def unconstrained_shape(bijection: Any, shape: torch.Size) -> torch.Size:
    """That of what a bijection maps to a value of this shape.

    As its own `inverse_shape`; but for an affine one that calls `torch.broadcast_shapes`, for which torch imports all
    that it has for symbolic shapes.
    """
    if isinstance(bijection, ComposeTransform):
        for part in reversed(bijection.parts):
            shape = unconstrained_shape(part, shape)
        return shape
    if isinstance(bijection, IndependentTransform):
        return unconstrained_shape(bijection.base_transform, shape)
    if isinstance(bijection, AffineTransform):
        return torch.Size(np.broadcast_shapes(shape, np.shape(bijection.loc), np.shape(bijection.scale)))
    return torch.Size(bijection.inverse_shape(shape))


def log_jacobian(bijection: Any, unconstrained: Tensor, value: Tensor) -> Tensor:
    """log|det d value / d unconstrained|, by event, as its own `log_abs_det_jacobian`.

    That of an identity makes a 0 for every coordinate, which for a network is memory of the size of its weights.
    """
    base, num_axes = bijection, unconstrained.ndim
    while isinstance(base, IndependentTransform):
        num_axes -= base.reinterpreted_batch_ndims
        base = base.base_transform
    if isinstance(base, ComposeTransform) and not base.parts:
        return unconstrained.new_zeros(()).expand(unconstrained.shape[:num_axes])
    result: Tensor = bijection.log_abs_det_jacobian(unconstrained, value)
    return result
