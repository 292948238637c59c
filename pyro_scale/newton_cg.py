r"""Newton's method with conjugate gradients for many coordinates: products with the Hessian, no matrix.

A direction is what the preconditioned conjugate gradient method has found when the residual is small, or a direction of
negative curvature comes: Nocedal & Wright (2006), algorithm 7.1. It serves models that are concave but for a few
places, whatever their scales; a network is left to another method, since negative curvature comes again and again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

import torch
from torch import Tensor

from pyro_scale import tree
from pyro_scale.curvature.conjugate import conjugate_gradients
from pyro_scale.products import Products
from pyro_scale.starts import LinAlgError
from pyro_scale.types import Position

MOST_STEPS = 50
MOST_HALVINGS = 30
MOST_NEGATIVE = 5
"""Steps that met negative curvature, after which the function is taken for one that has it everywhere."""
LEFT = 1e-3
"""Nats a coordinate that a mode may be below the maximum."""
CORRECTIONS = 3
LENGTHS = (1.0, 0.5, 0.25, 0.125)
"""Of a correction, the first that helps: the sample may be flatter than what it is of."""


def ascend(
    terms: Sequence[Callable[[Position], Tensor]],
    start: Position,
    units: Tensor,
    whole: Callable[[Position], Tensor] | None,
) -> Position | None:
    """The maximum above a start of a sum of functions; None if none is found, or curvature is often negative.

    Args:
        terms: functions of a position, in nats; their sum stands for the log posterior.
        start: where to start.
        units: of the coordinates, `(d,)`: the preconditioner is their square.
        whole: the gradient, raveled, of what the terms are a sample of, whose maximum is then approached by steps with
            their curvature; None if they are all.
    """
    position, negative = start, 0
    for _ in range(MOST_STEPS):
        products = Products(terms, position)
        gradient, value = products.gradient()
        if not gradient.isfinite().all():
            return None
        direction, is_negative = conjugate_gradients(products, gradient, units)
        negative += is_negative
        if negative >= MOST_NEGATIVE:
            return None
        rise = float(gradient @ direction) / 2
        moved = _backtrack(terms, position, value, direction, rise)
        if moved is None:
            return None
        position = moved
        if rise < LEFT * len(units) and not is_negative:
            break
    else:
        return None
    if whole is not None:
        corrected = _corrected(terms, position, units, whole)
        if corrected is None:
            return None
        position = corrected
    return position if all(leaf.isfinite().all() for leaf in position.values()) else None


def _corrected(
    terms: Sequence[Callable[[Position], Tensor]],
    position: Position,
    units: Tensor,
    whole: Callable[[Position], Tensor],
) -> Position | None:
    """By steps with the curvature of a sample, each of which makes the gradient of all smaller; None if that is NaN."""
    gradient = whole(position)
    if not gradient.isfinite().all():
        return None
    for _ in range(CORRECTIONS):
        direction, _ = conjugate_gradients(Products(terms, position), gradient, units)
        for length in LENGTHS:
            candidate = tree.unravel(tree.ravel(position) + length * direction, tree.shapes(position))
            shorter = whole(candidate)
            if float((units * shorter).norm()) < float((units * gradient).norm()):
                position, gradient = candidate, shorter
                break
        else:
            break
    return position


def _backtrack(
    terms: Sequence[Callable[[Position], Tensor]], position: Position, value: float, direction: Tensor, rise: float
) -> Position | None:
    """The longest of the steps 1, 1/2, 1/4, ... by which the value rises as its slope promises."""
    vector, length = tree.ravel(position), 1.0
    rounding = 8 * torch.finfo(vector.dtype).eps * abs(value)
    for _ in range(MOST_HALVINGS):
        candidate = tree.unravel(vector + length * direction, tree.shapes(position))
        with suppress(LinAlgError), torch.no_grad():
            if sum(float(term(candidate)) for term in terms) >= value + 2e-4 * length * rise - rounding:
                return candidate
        length /= 2
    return None
