"""Minibatch indices: endless permutations of the rows, cut into batches of equal size."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

from pyro_scale.keyed import NUM_KEYS, permuted

STORED_NUMBERS = 2**22
"""Rows times chains beyond which permutations are computed place by place, and not stored.

They would need more memory than what is drawn ahead; and to shuffle millions of rows takes longer than to compute them.
"""

SORTED_ROWS = 2**10
"""Rows up to which permutations come from sorted random numbers: a shuffle of so few takes no longer than its call."""

BLOCK = 2**15
"""Numbers that are made together: few calls, and all of them stay in the processor's cache."""

BatchState: TypeAlias = dict[str, Tensor]


class Permutations:
    """Every chain goes through permutations of its own of all rows, batch after batch, without a short last batch.

    A batch may span the end of one permutation and the start of the next. Indices are 64-bit: models may receive them,
    and not every function of torch takes others.

    Args:
        num_data: N, the number of rows.
        batch_size: rows of a batch, 1 to N.
        num_chains: number of chains.
        generator: where the permutations come from.
        stored: whether permutations are held in memory, num_chains x num_data numbers, or each place of theirs is
            computed when it is asked for; None for the first up to `STORED_NUMBERS`.

    Example:
        >>> batches = Permutations(6, 4, 1, torch.Generator().manual_seed(0))
        >>> indices = batches.draw(3)
        >>> indices.shape, indices.flatten().bincount().tolist()
        (torch.Size([3, 1, 4]), [2, 2, 2, 2, 2, 2])
    """

    def __init__(
        self,
        num_data: int,
        batch_size: int,
        num_chains: int,
        generator: torch.Generator,
        *,
        stored: bool | None = None,
    ) -> None:
        self.num_data = num_data
        self.batch_size = batch_size
        self.num_chains = num_chains
        self.generator = generator
        self.stored = num_chains * num_data <= STORED_NUMBERS if stored is None else stored
        self.rounds = max(1, BLOCK // (num_chains * num_data)) if self.stored else 1  # made at a time
        self.place = self.rounds * num_data  # in the current permutations, of which nothing is left
        self.current = torch.empty(num_chains, 0, dtype=torch.long, device="cpu")

    def draw(self, num_steps: int) -> Tensor:
        """Indices of the next batches, `(num_steps, num_chains, batch_size)`."""
        length = num_steps * self.batch_size
        visits = torch.empty(self.num_chains, length, dtype=torch.long, device="cpu")
        filled = 0
        while filled < length:
            if self.place == self.rounds * self.num_data:
                self.current, self.place = self._next(), 0
            rows = self._rows(length - filled)
            visits[:, filled : filled + rows.shape[1]] = rows
            filled += rows.shape[1]
            self.place += rows.shape[1]
        return visits.view(self.num_chains, num_steps, self.batch_size).transpose(0, 1).contiguous()

    def state(self) -> BatchState:
        """All that the batches to come depend on; nothing writes to these tensors."""
        return {"rows": self.generator.get_state(), "current": self.current, "place": torch.tensor(self.place)}

    def restore(self, state: BatchState) -> None:
        """Goes back to a state."""
        self.generator.set_state(state["rows"])
        self.current, self.place = state["current"], int(state["place"])

    def _next(self) -> Tensor:
        """The next permutations of every chain, `(num_chains, rounds * num_data)`, or the keys to compute one from."""
        if not self.stored:
            return torch.randint(2**31, (self.num_chains, NUM_KEYS), generator=self.generator, device="cpu")
        small = torch.int32 if self.num_data < 2**31 else torch.long
        table = torch.empty(self.rounds, self.num_chains, self.num_data, dtype=small, device="cpu")
        if self.num_data > SORTED_ROWS:
            for row in table.flatten(0, 1):
                torch.randperm(self.num_data, generator=self.generator, dtype=small, device="cpu", out=row)
        else:
            for some in table.flatten(0, 1).split(max(1, BLOCK // self.num_data)):
                some.copy_(self._sorted(len(some)))
        return table.transpose(0, 1).flatten(1)

    def _sorted(self, count: int) -> Tensor:
        """The order of random numbers of 53 bits or more, with the rows in the bits below them: `(count, num_data)`.

        Two of 1024 numbers are equal in one permutation of 10^10, and only then is the order of their rows not random.
        """
        mask = (1 << (self.num_data - 1).bit_length()) - 1
        numbers = torch.empty(count, self.num_data, dtype=torch.long, device="cpu").random_(generator=self.generator)
        numbers.bitwise_and_(~mask).bitwise_or_(torch.arange(self.num_data, device="cpu"))
        numbers.numpy().sort(1)  # ten times quicker than torch's, which finds out where each came from
        return numbers.bitwise_and_(mask)

    def _rows(self, most: int) -> Tensor:
        """Some of the next rows of the current permutations, `(num_chains, n)`, with n from 1 to `most`."""
        if self.stored:
            return self.current[:, self.place : self.place + most]
        end = min(self.num_data, self.place + min(most, max(1, BLOCK // self.num_chains)))
        return permuted(torch.arange(self.place, end, device="cpu"), self.num_data, self.current)
