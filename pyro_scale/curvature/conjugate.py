"""Preconditioned conjugate gradients, from products with vectors: Nocedal & Wright (2006), algorithm 7.1."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def conjugate_gradients(
    products: Callable[[Tensor], Tensor],
    gradient: Tensor,
    units: Tensor,
    *,
    residual_left: float = 0.03,
    most_products: int = 100,
) -> tuple[Tensor, bool]:
    """Solves H p = g; and whether negative curvature ended that.

    Args:
        products: of the symmetric matrix H with a vector.
        gradient: g, `(d,)`.
        units: of the coordinates, `(d,)`: the preconditioner is their square.
        residual_left: how small the residual is at the end, relative to g, both in these units.
        most_products: after which the solution is taken as it is.

    Example:
        >>> solution, negative = conjugate_gradients(lambda v: 2 * v, torch.ones(3), torch.ones(3))
        >>> solution, negative
        (tensor([0.5000, 0.5000, 0.5000]), False)
    """
    solution, residual = torch.zeros_like(gradient), gradient.clone()
    scaled = units**2 * residual
    direction, size = scaled, float(residual @ scaled)
    enough = residual_left**2 * size
    for step in range(most_products):
        if size <= enough or size == 0:
            break
        product = products(direction)
        curvature = float(direction @ product)
        if not math.isfinite(curvature) or curvature <= 0:
            return (scaled if step == 0 else solution), True
        solution = solution + size / curvature * direction
        residual = residual - size / curvature * product
        scaled = units**2 * residual
        before, size = size, float(residual @ scaled)
        direction = scaled + size / before * direction
    return solution, False
