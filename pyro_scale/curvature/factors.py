r"""Kronecker factors of a generalised Gauss-Newton matrix, site by site.

The matrix W of a linear layer $z = W a$ gets $A \otimes B$ with A the mean of $a a^\top$ and B the sum of $g g^\top$ over rows:
inputs and gradients are taken for independent (Martens & Grosse (2015), section 3.1). Where R places of a row share
the weight, as in a convolution or along a sequence, each place counts as a row of its own: A is the mean and B the sum over
places too, which is exact for a deep linear network whose places are the rows of the loss, and else leaves out how the
places of a row are correlated ("KFAC-expand" of Eschenhagen et al. (2023), section 3.2.1). A bias has B alone. Other sites
are dense up to `SMALL` coordinates, and diagonal beyond; both are exact.

References:
    Martens & Grosse (2015), Optimizing neural networks with Kronecker-factored approximate curvature, ICML.
    Eschenhagen, Immer, Turner, Schneider & Hennig (2023), Kronecker-factored approximate curvature for modern neural
    network architectures, NeurIPS.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_scale.curvature.diagonal import diagonal
from pyro_scale.curvature.jacobian import Linearised
from pyro_scale.curvature.layers import Elementwise, Linear, Use
from pyro_scale.types import Position

SMALL = 64
"""Coordinates of a site without layers whose block is dense."""
MOST_SIDE = 10_000
"""Rows of a factor; a longer one, as of an embedding of many words, would not fit in memory."""


class Factors(NamedTuple):
    """Sums over rows, unscaled; their block of a site is `first`, or `first` x `second` / `places`, or a diagonal.

    Attributes:
        first: site -> the factor of its first axis.
        second: site -> the factor of its other axes.
        places: site -> number of rows and places, 0-d.
        diagonal: site -> diagonal of its block.
    """

    first: Position
    second: Position
    places: Position
    diagonal: Position

    def __add__(self, other: Any) -> Factors:
        """The sums over the rows of both; of what one lacks, those of the other."""
        return Factors(*(_sum(one, another) for one, another in zip(self, other, strict=True)))


def _sum(one: Position, other: Position) -> Position:
    return {
        name: one[name] + other[name] if name in one and name in other else (one | other)[name] for name in one | other
    }


def factors(batch: Linearised) -> Factors:
    """Of the rows of a batch."""
    layers = {name: uses for name, uses in batch.explained.items() if _has_factors(uses)}
    gradients: Position = {}
    for outputs, cotangent in batch.cotangents() if layers else ():
        found = batch.at_layers(layers, outputs, cotangent)
        for name, uses in layers.items():
            for use in uses:
                if (gradient := found[use.edge]) is not None:
                    rows = _places(use, gradient)
                    gradients[name] = gradients.get(name, 0) + rows.T @ rows
    result = Factors({}, {}, {}, {})
    for name, gradient in gradients.items():
        linear = [use for use in layers[name] if isinstance(use, Linear)]
        if not linear:
            result.first[name] = gradient
            continue
        inputs, number = torch.zeros(()), 0
        for use in linear:
            rows = use.inputs(slice(None)).flatten(0, 1)
            inputs, number = inputs + rows.T @ rows, number + len(rows)
        pair = (inputs, gradient) if linear[0].turned else (gradient, inputs)
        result.first[name], result.second[name] = pair
        result.places[name] = torch.tensor(number)
    small = [name for name in batch.others if batch.leaves[name].numel() <= SMALL]
    result.first.update(_dense_blocks(batch, small))
    result.diagonal.update(diagonal(batch, [name for name in batch.leaves if name not in result.first]))
    return result


def _has_factors(uses: Sequence[Use]) -> bool:
    """Whether all uses are linear maps, stored alike, or all are biases."""
    linear = [use for use in uses if isinstance(use, Linear)]
    if not linear:
        return all(isinstance(use, Elementwise) and use.factor is None and _is_vector(use.shape) for use in uses)
    sides = [use.inputs(slice(0, 1)).shape[-1] for use in linear]
    return len(linear) == len(uses) and len({use.turned for use in linear}) == 1 and max(sides) <= MOST_SIDE


def _is_vector(shape: Sequence[int]) -> bool:
    return sum(size > 1 for size in shape) <= 1 and max(shape) <= MOST_SIDE


def _places(use: Use, gradient: Tensor) -> Tensor:
    """g of all rows and places, `(n R, o)`."""
    if isinstance(use, Linear):
        return use.arrange(gradient).flatten(0, 1)
    axes = [axis for axis, size in enumerate(use.shape) if size > 1]
    return gradient.movedim(axes[0], -1).flatten(0, -2) if axes else gradient.reshape(-1, 1)


def _dense_blocks(batch: Linearised, names: Sequence[str]) -> Position:
    leaves = [batch.leaves[name] for name in names]
    found = {name: leaf.new_zeros(leaf.numel(), leaf.numel()) for name, leaf in zip(names, leaves, strict=True)}
    for one in batch.information.values() if names else ():
        parts = [part for _, part in batch.jacobian(one.outputs, names)]
        if not parts:
            continue
        rows = torch.einsum("pnek,nekr->pner", torch.cat(parts), one.root).flatten(1)
        for name, own in zip(names, rows.split([leaf.numel() for leaf in leaves]), strict=True):
            found[name] += own @ own.T
    return found
