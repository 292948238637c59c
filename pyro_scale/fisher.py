"""Curvature of many coordinates, as a diagonal: that of the rows by their gradients, of the rest by its Hessian."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_scale import tree
from pyro_scale.compile import CompiledModel
from pyro_scale.gradient_noise import noise_variance
from pyro_scale.hessian import Spectrum
from pyro_scale.products import Products
from pyro_scale.products import diagonal as estimate
from pyro_scale.types import Batch, Position

FISHER_BATCHES, FISHER_ROWS = 64, 64
MOST_ROWS, BLOCK_NUMBERS = 4096, 2**24
"""Rows that are looked at side by side: so many, and times coordinates so many, or those of a minibatch."""


class Fisher:
    """The rows of a model, and the curvature that they show.

    Args:
        compiled: the model.
        generator: of what is random.

    Attributes:
        splits: whether the log posterior is one of the rows at a time.
        block_rows: rows looked at side by side.
    """

    def __init__(self, compiled: CompiledModel, generator: torch.Generator) -> None:
        self.compiled = compiled
        self.generator = generator
        size = sum(shape.numel() for shape in compiled.latent.values())
        self.splits = compiled.structure.minibatch_error is None and not compiled.local
        most = max(compiled.batch_size or 0, min(MOST_ROWS, BLOCK_NUMBERS // size), 1)
        self.block_rows = min(most, compiled.num_data) if self.splits else compiled.num_data

    @property
    def blocks(self) -> list[Batch]:
        """All rows once."""
        if not self.splits:
            return [self.compiled.batch()]
        rows = torch.arange(self.compiled.num_data, device="cpu").split(self.block_rows)
        return [self.compiled.batch(block) for block in rows]

    def some_rows(self, most: int) -> list[Batch]:
        """So many at most, in blocks."""
        compiled = self.compiled
        if not self.splits:
            return [compiled.batch()]
        rows = torch.randint(compiled.num_data, (most,), generator=self.generator, device="cpu")
        if compiled.num_data <= most:
            rows = torch.arange(compiled.num_data, device="cpu")
        return [compiled.batch(block) for block in rows.split(self.block_rows)]

    def diagonal(self, position: Position) -> tuple[Tensor, Tensor]:
        """The diagonal at a position: that of the rows, and the rest, `(d,)` each."""
        compiled, num_data = self.compiled, self.compiled.num_data
        rows = torch.zeros_like(tree.ravel(position))
        if self.splits:
            size = min(FISHER_ROWS, compiled.batch_size or FISHER_ROWS, max(1, num_data // 2))
            generator = torch.Generator().manual_seed(
                int(torch.randint(2**31, (), generator=self.generator, device="cpu"))
            )
            one = tree.map(lambda leaf: leaf.unsqueeze(0), position)
            variance = noise_variance(
                compiled, compiled.gathered, num_data, size, (), one, generator, repeats=FISHER_BATCHES
            )
            rows = tree.ravel(variance) * (num_data * size * (max(1, num_data - 1) / max(1, num_data - size)))
            products = Products([compiled.log_prior], position)
        else:
            batch = compiled.batch()
            products = Products([lambda at: compiled(at, batch)], position)
        found = rows
        for _ in range(2):  # the first tells the units
            units, _ = Spectrum.of(found).factors()
            found = rows + estimate(products, units, self.generator)[0].abs().nan_to_num(0.0, 0.0, 0.0)
        return rows, found - rows
