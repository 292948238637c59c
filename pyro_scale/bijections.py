"""Shapes of what bijections map to the support of a site."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
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
