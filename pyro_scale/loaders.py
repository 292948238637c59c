"""Rows that a `DataLoader` yields batch by batch: matched to the model's arguments, checked, and in a seeded order."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from inspect import Parameter
from typing import Any, NoReturn, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, SubsetRandomSampler, WeightedRandomSampler

from pyro_scale.arrays import as_rows, check_finite, place
from pyro_scale.data import FEW_ROWS, Data, Model, arguments_of, by_name, names_of, read
from pyro_scale.datasets import as_columns, length
from pyro_scale.errors import ArgumentError, DataError
from pyro_scale.handlers import seeded
from pyro_scale.orders import check_order
from pyro_scale.types import Constants

logger = logging.getLogger("pyro_scale")

INSTEAD = "Pass loader.dataset in place of the loader: it is read into memory once."


@dataclass(frozen=True)
class Streamed(Data):
    """Data that arrive from a loader.

    Attributes:
        rows: argument -> what raises `ArgumentError` when it is asked for: not all rows are there at once.
        loader: where batches come from.
        batch_size: rows of a batch, all but the last one of an epoch.
        few: some rows, an example of their shapes and types.
        parameters: of the model's signature.
    """

    loader: DataLoader[Any] = field(kw_only=True)
    batch_size: int = field(kw_only=True)
    few: dict[str, Tensor] = field(kw_only=True)
    parameters: Mapping[str, Parameter] = field(kw_only=True)

    @property
    def columns(self) -> dict[str, Tensor]:
        """Argument -> some of its rows."""
        return self.few

    def take(self, indices: Tensor) -> dict[str, Tensor]:
        """Rows by index: items of the dataset, collated as the loader does it."""
        rows = self.matched(_collated(self.loader, indices.flatten().tolist()))
        return {name: value.unflatten(0, indices.shape) for name, value in rows.items()}

    def matched(self, batch: Any) -> dict[str, Tensor]:
        """Argument -> rows, of a batch that the loader yields.

        Raises:
            DataError: it is not like the rows that the loader's dataset starts with.
        """
        named = by_name(as_columns(batch), self.parameters)
        if named.keys() != self.few.keys():
            raise DataError(f"it holds {names_of([*map(str, named)])}, and the first items {names_of([*self.few])}.")
        rows = {name: as_rows(name, value) for name, value in named.items()}
        for name, value in rows.items():
            first = self.few[name]
            if value.shape[1:] != first.shape[1:]:
                raise DataError(
                    f"data['{name}'] has rows of shape {tuple(value.shape[1:])}, and {tuple(first.shape[1:])} in the "
                    "first items."
                )
            if _kind(value) != _kind(first):
                raise DataError(f"data['{name}'] is {value.dtype}, and {first.dtype} in the first items.")
            check_finite(name, value)
        return {name: place(value, self.dtype, self.device) for name, value in rows.items()}


class Stream:
    """Endless epochs of a loader, in an order that the seed decides unless the loader has a generator of its own.

    Nothing is started before the first batch is asked for; `close` ends the loader's workers.

    Args:
        data: what the loader yields.
        seed: of the order, and of what a dataset draws from torch's global generator, which is left as it was.
        check: raises `DataError` where rows do not suit the model.
        named: how messages name a batch, by its number, counted from 1.
    """

    def __init__(
        self,
        data: Streamed,
        seed: int,
        check: Callable[[dict[str, Tensor]], None],
        named: Callable[[int], str] = "Batch {} of the DataLoader".format,
    ) -> None:
        self.data = data
        self.check = check
        self.named = named
        with seeded(seed, torch.device("cpu")):
            self.state = torch.get_rng_state()
        self.batches: Iterator[Any] | None = None
        self.count = 0

    def next(self) -> dict[str, Tensor]:
        """The next batch, argument -> rows.

        Raises:
            DataError: it is not like the first items of the dataset; names it.
        """
        batch = self._next()
        self.count += 1
        try:
            rows = self.data.matched(batch)
            self._check_length(rows)
            self.check(rows)
        except (ArgumentError, DataError) as error:
            raise DataError(
                f"{self.named(self.count)}: {error} Every batch must be like the first: see the dataset "
                "and its collate_fn."
            ) from error
        return rows

    def close(self) -> None:
        """Ends the loader's workers, persistent ones too; a loader that is used again starts new ones."""
        shut_down = getattr(self.batches, "_shutdown_workers", None)
        if shut_down is not None:
            shut_down()
            self.data.loader._iterator = None  # else the loader would wait for workers that are gone
        self.batches = None

    def _next(self) -> Any:
        with self._own_random_state():
            if self.batches is not None:
                try:
                    return next(self.batches)
                except StopIteration:
                    pass
            self.batches = iter(self.data.loader)
            return next(self.batches)

    @contextmanager
    def _own_random_state(self) -> Iterator[None]:
        """The global generator as this stream left it: an epoch's order is drawn from it, and by a dataset anything."""
        before = torch.get_rng_state()
        torch.set_rng_state(self.state)
        try:
            yield
        finally:
            self.state = torch.get_rng_state()
            torch.set_rng_state(before)

    def _check_length(self, rows: Mapping[str, Tensor]) -> None:
        lengths = {name: len(value) for name, value in rows.items()}
        size, drawn = int(self.data.loader.batch_size or 0), len(self.data.loader.sampler)  # type: ignore[arg-type]
        last = drawn % size
        for name, got in lengths.items():
            if got not in {min(size, drawn), last or size} or got != next(iter(lengths.values())):
                short = f", the last one of an epoch {last}" if last else ""
                raise DataError(f"data['{name}'] has {got} rows; the loader's batches have {min(size, drawn)}{short}.")


def streamed(
    model: Model,
    loader: DataLoader[Any],
    constants: Constants | None,
    dtype: torch.dtype | None,
    device: str | torch.device | None,
) -> Streamed:
    """A loader as data; a few items of its dataset say what its batches hold.

    Raises:
        ArgumentError: it cannot be examined or scaled: no dataset with a length, batches or chances of its own.
        DataError: its dataset is empty, or its items cannot be matched to the model.
    """
    num_data = length(loader.dataset)
    _check_batches(loader, num_data)
    items = list(range(min(FEW_ROWS, num_data)))
    table = read(model, as_columns(_collated(loader, items)), constants, dtype=dtype, device=device)
    if table.num_data != len(items):
        raise DataError(
            f"The DataLoader's collate_fn makes {table.num_data} rows of {len(items)} items, so that the number of "
            "all rows is not known. Let every item be one row."
        )
    check_order(loader)
    return Streamed(
        rows=cast(Any, _Unread(list(table.rows))),
        constants=table.constants,
        num_data=num_data,
        dtype=table.dtype,
        device=table.device,
        loader=loader,
        batch_size=min(int(loader.batch_size or 0), num_data),
        few=table.rows,
        parameters=arguments_of(model),
    )


class _Unread(Mapping[str, Tensor]):
    """Names of arguments whose rows are not all there."""

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def __getitem__(self, name: str) -> NoReturn:
        raise ArgumentError(
            "data is a DataLoader, whose rows come batch by batch, and all of them are needed at once here. " + INSTEAD
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def _collated(loader: DataLoader[Any], items: list[int]) -> Any:
    rows = []
    for item in items:
        with seeded(item, torch.device("cpu")):  # an item that is changed at random is then the same in any company
            rows.append(loader.dataset[item])
    with seeded(0, torch.device("cpu")):
        return loader.collate_fn(rows)


def _check_batches(loader: DataLoader[Any], num_data: int) -> None:
    remedy = "Use DataLoader(dataset, batch_size=..., shuffle=True), or pass the dataset itself with batch_size."
    if loader.batch_size is None:
        raise ArgumentError(
            "data is a DataLoader with a batch_sampler of its own or batch_size=None, so that neither the size of its "
            f"batches nor the chance of a row is known. {remedy}"
        )
    if isinstance(loader.sampler, (WeightedRandomSampler, SubsetRandomSampler)):
        raise ArgumentError(
            f"data is a DataLoader with a {type(loader.sampler).__name__}: rows must have equal chances, since each "
            f"batch stands for all {num_data}. {remedy} Use Subset for a part of the data, weights in the model "
            "(poutine.scale) for rows that count more."
        )
    if len(loader) == 0:
        raise DataError(
            f"data is a DataLoader that yields no batch: {num_data} items are fewer than its batch_size of "
            f"{loader.batch_size}, and drop_last is set. Leave out drop_last, or lower batch_size."
        )


def _kind(value: Tensor) -> str:
    return "floating" if value.is_floating_point() else "boolean" if value.dtype == torch.bool else "whole"
