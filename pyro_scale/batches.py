"""Minibatch indices: endless permutations of the rows, cut into batches of equal size."""

from __future__ import annotations

import torch
from torch import Tensor


class Permutations:
    """Every chain goes through permutations of its own of all rows, batch after batch, without a short last batch.

    A batch may span the end of one permutation and the start of the next. All state is `generator` and `remaining`.

    Args:
        num_data: N, the number of rows.
        batch_size: rows of a batch, 1 to N.
        num_chains: number of chains.
        generator: where the permutations come from.

    Example:
        >>> batches = Permutations(6, 4, 1, torch.Generator().manual_seed(0))
        >>> indices = batches.draw(3)
        >>> indices.shape, indices.flatten().bincount().tolist()
        (torch.Size([3, 1, 4]), [2, 2, 2, 2, 2, 2])
    """

    def __init__(self, num_data: int, batch_size: int, num_chains: int, generator: torch.Generator) -> None:
        self.num_data = num_data
        self.batch_size = batch_size
        self.generator = generator
        self.remaining = torch.empty(num_chains, 0, dtype=torch.long, device="cpu")

    def draw(self, num_steps: int) -> Tensor:
        """Indices of the next batches, `(num_steps, num_chains, batch_size)`."""
        wanted = num_steps * self.batch_size
        missing = wanted - self.remaining.shape[1]
        rounds = [self._permutation() for _ in range(-(-missing // self.num_data))]
        supply = torch.cat([self.remaining, *rounds], dim=1)
        self.remaining = supply[:, wanted:].clone()
        chains = supply.shape[0]
        return supply[:, :wanted].reshape(chains, num_steps, self.batch_size).transpose(0, 1)

    def _permutation(self) -> Tensor:
        rows = [torch.randperm(self.num_data, generator=self.generator, device="cpu") for _ in self.remaining]
        return torch.stack(rows)
