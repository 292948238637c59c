"""Gradients of the log posterior at many draws: on all rows, or on minibatches of each draw's own."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_scale import tree
from pyro_scale.compile import CompiledModel
from pyro_scale.errors import MinibatchError
from pyro_scale.gradient_noise import minibatch_gradients
from pyro_scale.temperature import gradients_at
from pyro_scale.types import Position

ROWS = 2**18
"""Rows whose gradients are taken at once."""
REPEATS = 2
"""Minibatches at each draw: what tells the noise of one apart from the gradient."""


def full_scores(compiled: CompiledModel, positions: Position) -> Position:
    """Gradients on all rows, as the mean of those that blocks of rows stand for."""
    if compiled.num_data <= ROWS or compiled.local or compiled.structure.minibatch_error is not None:
        return gradients_at(compiled, positions, compiled.batch())
    total = tree.map(torch.zeros_like, positions)
    for rows in torch.arange(compiled.num_data).split(ROWS):
        part = tree.scale(gradients_at(compiled, positions, compiled.batch(rows)), len(rows) / compiled.num_data)
        total = tree.map(torch.add, total, part)
    return total


def noisy_scores(compiled: CompiledModel, positions: Position, batch_size: int, seed: int) -> list[Position]:
    """Gradients of two minibatches at each draw, all of them independent."""
    if compiled.structure.minibatch_error is not None:
        raise MinibatchError(f"{compiled.structure.minibatch_error} Leave batch_size out to take all rows.")
    if compiled.local:
        raise MinibatchError(
            f"Site '{next(iter(compiled.local))}' has a value for each row, and every one of them needs its gradient. "
            "Leave batch_size out."
        )
    generator = torch.Generator().manual_seed(seed)
    number, block = len(next(iter(positions.values()))), max(1, ROWS // batch_size)
    found = []
    for _ in range(REPEATS):
        parts = [
            minibatch_gradients(
                compiled, compiled.gathered, compiled.num_data, batch_size, (),
                tree.map(lambda leaf, i=i: leaf[i : i + block], positions), generator,
            )
            for i in range(0, number, block)
        ]  # fmt: skip
        found.append({name: torch.cat([part[name] for part in parts]) for name in positions})
    return found


def vectors(leaves: Position) -> Tensor:
    """Leaves `(n, *site)` as `(n, d)`, in double precision."""
    return torch.cat([leaf.detach().double().cpu().reshape(len(leaf), -1) for leaf in leaves.values()], 1)
