"""Rows of a loader, read once and held in memory: tuning looks at them again and again, and in any order."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from pyro_scale import tree
from pyro_scale.arriving import check_of
from pyro_scale.compile import CompiledModel
from pyro_scale.data import Data
from pyro_scale.datasets import own_tensors
from pyro_scale.gradient import Frame
from pyro_scale.loaders import Stream, Streamed
from pyro_scale.orders import epoch_of
from pyro_scale.types import Kernel
from pyro_scale.whitening import Whitened

logger = logging.getLogger("pyro_scale")

MOST_BYTES, MOST_ROWS = 2**30, 2**18
"""Of more, a random sample is held."""
LEAST_BATCHES = 16
"""Minibatches that a sample has rows for, whatever they take: their noise is measured."""
COMPARED = 64
"""Items that are read twice, to see whether they are the same then."""


class Held(NamedTuple):
    """A model on rows in memory.

    Attributes:
        run: the model as it was.
        compiled: the model; of a sample of the rows, each stands for as many as there are for one of the sample.
        whole: whether these are all rows, as every epoch has them: then alone they tell the gradient of all rows.
    """

    run: CompiledModel
    compiled: CompiledModel
    whole: bool

    @property
    def epoch(self) -> tuple[float, float]:
        """Batches of an epoch of the run, and how uneven they are: see `epoch_of`."""
        if isinstance(self.run.data, Streamed):
            return epoch_of(self.run.data.loader)
        return self.run.num_data / (self.run.batch_size or self.run.num_data), 0.0

    def of_run(self, kernel: Kernel, frame: Frame) -> tuple[Kernel, Frame]:
        """For the model as it was, what was chosen for that in memory."""
        if self.run is self.compiled:
            return kernel, frame
        assert isinstance(frame.whitened, Whitened)
        ratio = self.compiled.weight
        if variance := getattr(kernel, "gradient_variance", None):
            kernel = replace(cast(Any, kernel), gradient_variance=tree.scale(variance, 1 / ratio))
        return kernel, frame._replace(whitened=frame.whitened.of(self.run, ratio))


def in_memory(compiled: CompiledModel, seed: int, seek: Callable[[], None]) -> Held:
    """The model on rows that are all there: its own, unless they come from a loader.

    Args:
        compiled: the model.
        seed: of the sample, and of what a dataset draws from torch's global generator, which is left as it was.
        seek: is called after every batch that is read.

    Raises:
        DataError: rows are not like the first, or hold what a site could not have.
        Exception: that of the dataset, or of `seek`.
    """
    data = compiled.data
    if not isinstance(data, Streamed):
        return Held(compiled, compiled, True)
    tensors, items = _tensors(data), _chosen(data, seed)
    if tensors is None:
        rows = _read(compiled, data, items, seed, seek)
    else:
        check_of(compiled)(rows := data.matched(tensors))
    number = len(next(iter(rows.values())))
    plain = Data(rows, data.constants, number, data.dtype, data.device, data.params)
    table = compiled.on(plain, data.num_data / number)
    if number < data.num_data:
        logger.info("Tuning holds %d of the %d rows, and takes no control variates.", number, data.num_data)
        return Held(compiled, table, False)
    fixed = tensors is not None or _same(rows, data.take(items[:COMPARED]))
    if not fixed:
        logger.info("The DataLoader's items change from one reading to the next: no control variates are taken.")
    return Held(compiled, table, fixed)


def _tensors(data: Streamed) -> tuple[Tensor, ...] | None:
    """All rows, where they are in memory as they are."""
    return own_tensors(data.loader.dataset) if data.loader.collate_fn is default_collate else None


def _chosen(data: Streamed, seed: int) -> Tensor:
    """Items to be held, in order."""
    row_bytes = sum(value[0].numel() * value.itemsize for value in data.few.values())
    most = max(LEAST_BATCHES * data.batch_size, min(MOST_ROWS, MOST_BYTES // max(1, row_bytes)))
    if data.num_data <= most:
        return torch.arange(data.num_data, device="cpu")
    order = torch.randperm(data.num_data, generator=torch.Generator().manual_seed(seed), device="cpu")
    return order[:most].sort().values


def _read(
    compiled: CompiledModel, data: Streamed, items: Tensor, seed: int, seek: Callable[[], None]
) -> dict[str, Tensor]:
    """The items, as the loader would join them, by as many workers."""
    loader, size = data.loader, data.batch_size
    given: dict[str, Any] = {}
    if loader.num_workers > 0:
        names = ("worker_init_fn", "multiprocessing_context", "prefetch_factor", "timeout")
        given = {name: getattr(loader, name) for name in names}
    once = DataLoader(
        loader.dataset,
        batch_size=size,
        sampler=items.tolist(),
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
        **given,
    )

    def named(count: int) -> str:
        return f"Items {int(items[(count - 1) * size])} to {int(items[: count * size][-1])} of the dataset"

    stream = Stream(replace(data, loader=once), seed, check_of(compiled), named)
    rows: dict[str, Tensor] = {}
    try:
        for start in range(0, len(items), size):
            for name, value in stream.next().items():
                if start == 0:
                    rows[name] = value.new_empty((len(items), *value.shape[1:]))
                rows[name][start : start + len(value)] = value
            seek()
    finally:
        stream.close()
    return rows


def _same(rows: dict[str, Tensor], again: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, rows[name][: len(value)]) for name, value in again.items())
