"""Steps on the batches of a loader: recorded for each number of rows, since N/n is part of what is recorded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_scale import tree
from pyro_scale.compile import CompiledModel
from pyro_scale.errors import ArgumentError
from pyro_scale.loaders import INSTEAD, Stream, Streamed
from pyro_scale.types import Anchor, Batch

Step = Callable[..., Any]


class Arriving:
    """The batches of a loader as they come, and the steps recorded so far.

    Args:
        compiled: the model, on a loader's data.
        seed: of the loader's order.
        anchor: of the control variates of every chain, if the target has them.
    """

    def __init__(self, compiled: CompiledModel, seed: int, anchor: Anchor | tuple[()] = ()) -> None:
        assert isinstance(compiled.data, Streamed)
        self.compiled = compiled
        self.stream = Stream(compiled.data, seed, check_of(compiled))
        self.anchor = anchor
        self.steps: dict[int, Step] = {}

    @property
    def example(self) -> Batch:
        """A batch that uses up none of the loader's."""
        batch = self.compiled.batch(torch.arange(self.compiled.batch_size or self.compiled.num_data))
        return batch._replace(data=tree.map(Tensor.contiguous, batch.data), anchor=self.anchor)

    def expect(self, batch: Batch, step: Step, record: Callable[[Batch], Step]) -> None:
        """The step recorded for one batch, and how to record it for one of another length."""
        self.steps[len(batch.indices)] = step
        self.record = record

    def next(self) -> tuple[Batch, Step]:
        """The next batch, and the step for its number of rows."""
        rows = tree.map(Tensor.contiguous, self.stream.next())  # compiled code takes no others
        batch = self.compiled.arrived(rows)._replace(anchor=self.anchor)
        length = len(batch.indices)
        if length not in self.steps:
            self.steps[length] = self.record(batch)
        return batch, self.steps[length]

    def refuse_state(self) -> None:
        """Raises `ArgumentError`: where a loader stands cannot be told."""
        raise ArgumentError(
            "The state of this run depends on where its DataLoader stands, which a loader does not tell. " + INSTEAD
        )


def check_of(compiled: CompiledModel) -> Callable[[dict[str, Tensor]], None]:
    """What raises `DataError` where rows hold a value that a site could not have."""
    supports = compiled.structure.supports

    def check(rows: dict[str, Tensor]) -> None:
        for name in supports.keys() & rows.keys():
            supports[name].check(rows[name])

    return check


def arriving_at(compiled: CompiledModel, seed: int, anchor: Anchor | tuple[()]) -> Arriving | None:
    """The batches of the loader that the data are, if they are one."""
    return Arriving(compiled, seed, anchor) if isinstance(compiled.data, Streamed) else None
