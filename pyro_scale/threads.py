"""Torch's threads: one where there is little to share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pyro_scale.compile import CompiledModel

LITTLE = 2**17
"""So many numbers one thread goes through in about 0.1 ms. On a busy machine, or in a container with fewer cores than
it shows, waiting for a second one takes milliseconds in every operation: eigenvalues of 90 x 90 numbers took 0.3 s
there, and 2 ms in one thread."""


@contextmanager
def threads_kept() -> Iterator[None]:
    """Torch has as many threads afterwards as before; decorates functions, too."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


def suit_threads(compiled: CompiledModel, num_chains: int) -> None:
    """One thread from now on, if chains and all rows, or those of a step, are few numbers; otherwise all stay."""
    row = sum(column.shape[1:].numel() for column in compiled.data.columns.values())
    rows = max(compiled.num_data, num_chains * (compiled.batch_size or 0))
    coordinates = sum(shape.numel() for shape in compiled.latent.values())
    if rows * max(1, row) + num_chains * coordinates <= LITTLE:
        torch.set_num_threads(1)
