"""How much the gradient varies from minibatch to minibatch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from pyro_scale import tree
from pyro_scale.derivative import grad_and_value
from pyro_scale.draws import over_chains
from pyro_scale.starts import LinAlgError
from pyro_scale.types import Anchor, Batch, LogPosterior, Position

REPEATS, ROWS = 8, 64
"""Minibatches whose gradients are compared at a position: so many, and more where these have fewer rows."""


def noise_variance(
    target: LogPosterior,
    gather: Callable[[Tensor], Batch],
    num_data: int,
    batch_size: int,
    anchors: Anchor | tuple[()],
    positions: Position,
    generator: torch.Generator,
    repeats: int | None = None,
    local: Mapping[str, int] = MappingProxyType({}),
) -> Position:
    """Variance over minibatches of the gradient divided by num_data, averaged over positions: V of the kernels.

    Args:
        target: whose gradient is meant.
        gather: the batch at indices, `(n, batch_size)`.
        num_data: N.
        batch_size: rows of a minibatch, which holds none twice.
        anchors: one for each position, leaves with a leading axis; `()` for a target that needs none.
        positions: `(n, *site)`.
        generator: of the rows.
        repeats: minibatches at each position; None for as many as tell the noise at a dozen positions.
        local: site with a value for each row -> axis of it that follows the rows, as `CompiledModel.local`. Positions
            hold all rows; V is one 0 there, since a row's gradient does not depend on the others.
    """
    number = len(next(iter(positions.values())))
    repeats = max(REPEATS, -(-ROWS // batch_size)) if repeats is None else repeats

    def gradients() -> Position:
        return minibatch_gradients(target, gather, num_data, batch_size, anchors, positions, generator, local)

    # one minibatch after another, by Welford's recurrence: of many weights, few copies are in memory
    mean = gradients()
    squares = tree.map(torch.zeros_like, mean)
    for count in range(2, repeats + 1):
        change = tree.map(torch.sub, gradients(), mean)
        mean = tree.map(lambda m, c, count=count: m + c / count, mean, change)
        squares = tree.map(lambda s, c, count=count: s + (1 - 1 / count) * c**2, squares, change)

    def average(square: Tensor) -> Tensor:
        """Over the positions at which gradients are finite; 0 if there are none."""
        variances = square / (repeats - 1)
        finite = variances[variances.reshape(number, -1).isfinite().all(1)]
        return finite.mean(0) if len(finite) else torch.zeros_like(variances[0])

    share = without_replacement(num_data, batch_size) / num_data**2
    found = tree.scale(tree.map(average, squares), share)
    return {name: leaf.new_zeros(()) if name in local else leaf for name, leaf in found.items()}


def without_replacement(num_data: int, batch_size: int) -> float:
    """How much less gradients vary over minibatches that hold no row twice than over those that may."""
    return (num_data - batch_size) / max(1, num_data - 1)


def minibatch_gradients(
    target: LogPosterior,
    gather: Callable[[Tensor], Batch],
    num_data: int,
    batch_size: int,
    anchors: Anchor | tuple[()],
    positions: Position,
    generator: torch.Generator,
    local: Mapping[str, int] = MappingProxyType({}),
) -> Position:
    """Gradients on another minibatch at each position, its rows drawn with replacement; arguments as above."""
    rows = torch.randint(num_data, (len(next(iter(positions.values()))), batch_size), generator=generator, device="cpu")
    batch = gather(rows)

    def at_rows(position: Position, indices: Tensor) -> Position:
        return {n: leaf.index_select(local[n], indices) if n in local else leaf for n, leaf in position.items()}

    def gradient(position: Position, data: dict[str, Tensor], indices: Tensor, anchor: Any) -> Position:
        here = at_rows(position, indices)
        result: Position = grad_and_value(target)(here, Batch(data, indices, batch.scale, anchor))[0]
        return result

    def or_none(position: Position, data: dict[str, Tensor], indices: Tensor, anchor: Any) -> Position:
        try:
            return gradient(position, data, indices, anchor)
        except LinAlgError:
            return tree.map(lambda leaf: torch.full_like(leaf, torch.nan), at_rows(position, indices))

    found: Position = over_chains(gradient, or_none, positions, batch.data, batch.indices, anchors)
    return found
