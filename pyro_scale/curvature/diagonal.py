"""The diagonal of a generalised Gauss-Newton matrix, exactly, without the gradients of rows where layers give it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from pyro_scale import tree
from pyro_scale.curvature.jacobian import Gradients, Linearised
from pyro_scale.curvature.layers import Linear, Use
from pyro_scale.types import Position

AT_ONCE = 2**24
"""Numbers of the gradients of rows that are held at once."""


def gauss_newton_diagonal(batch: Linearised, names: Sequence[str] | None = None) -> Position:
    r"""$\sum_n \sum_c (J_n^\top S_{n,c})^2$, unscaled; leaves as those of the sites.

    `names` are those that are wanted, None for all.

    A linear layer that a row meets once has $(g_n a_n^\top)^2 = g_n^2 (a_n^2)^\top$: one product of matrices for all
    rows and columns. With R places of a row the gradients of rows are formed, a few rows at a time.
    """
    names = list(batch.leaves) if names is None else names
    layers = {name: uses for name, uses in batch.explained.items() if name in names}
    once = {name: uses[0] for name, uses in layers.items() if len(uses) == 1 and _meets_once(uses[0])}
    several = {name: uses for name, uses in layers.items() if name not in once}
    found = {name: torch.zeros_like(batch.leaves[name]) for name in names if name not in once}
    squares: dict[GradientEdge, Tensor] = {}
    for outputs, cotangent in batch.cotangents() if layers else ():
        gradients = batch.at_layers(layers, outputs, cotangent)
        for edge in {use.edge: None for use in once.values()}:
            if (gradient := gradients[edge]) is not None:
                squares[edge] = (
                    torch.addcmul(squares[edge], gradient, gradient) if edge in squares else gradient.square()
                )
        for name, uses in several.items():
            if any(gradients[use.edge] is not None for use in uses):
                found[name] += _squares(batch, name, uses, gradients)
    for name, use in once.items():
        leaf, square = batch.leaves[name], squares.get(use.edge)
        found[name] = torch.zeros_like(leaf) if square is None else _at_once(use, square).reshape(leaf.shape)
    found |= _without_layers(batch, [name for name in batch.others if name in names])
    return {name: found[name] for name in names}


def _meets_once(use: Use) -> bool:
    """Whether a row meets it in one place, and its entries separately."""
    if isinstance(use, Linear):
        return use.inputs(slice(0, 1)).shape[1] == 1
    return use.factor is None and 1 not in use.shape[1:]


def _at_once(use: Use, square: Tensor) -> Tensor:
    if not isinstance(use, Linear):
        return square.sum(0)
    a, g = use.inputs(slice(None)).square().squeeze(1), use.arrange(square).squeeze(1)
    return a.T @ g if use.turned else g.T @ a


def _squares(batch: Linearised, name: str, uses: Sequence[Use], gradients: Gradients) -> Tensor:
    total = torch.zeros_like(batch.leaves[name])
    step = max(1, AT_ONCE // max(1, total.numel()))
    for first in range(0, batch.num_rows, step):
        total += batch.by_row(name, uses, gradients, slice(first, first + step)).square().sum(0)
    return total


def _without_layers(batch: Linearised, names: Sequence[str]) -> Position:
    if not names:
        return {}
    leaves = {name: batch.leaves[name].detach() for name in names}
    total = torch.zeros_like(tree.ravel(leaves))
    for one in batch.information.values():
        for first, columns in batch.jacobian(one.outputs, names):
            rows = torch.einsum("pnek,nekr->pner", columns, one.root)
            total[first : first + len(columns)] += rows.square().flatten(1).sum(1)
    return tree.unravel(total, tree.shapes(leaves))
