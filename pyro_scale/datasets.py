"""A `torch.utils.data.Dataset` as tensors: those it consists of, or all its items, read into memory once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset, default_collate

from pyro_scale.errors import ArgumentError, DataError

BLOCK_ITEMS = 1024
"""Items that are read before they are joined."""

Columns = dict[str, Any] | tuple[Any, ...]


def columns(dataset: Dataset[Any]) -> Columns:
    """The tensors of a dataset with a row for each item: a dict by argument, or a tuple in their order.

    Those of a `TensorDataset` are its own; of other datasets all items are read, a tensor, tuple or dict each.

    Raises:
        ArgumentError: its items cannot be picked by number.
        DataError: it has no items, or they differ in structure, shape or type.
    """
    num_items = length(dataset)
    if (own := own_tensors(dataset)) is not None:
        return own
    whole: dict[Any, Tensor] = {}
    first: Columns = ()
    for start in range(0, num_items, BLOCK_ITEMS):
        items = range(start, min(start + BLOCK_ITEMS, num_items))
        block = _collated(dataset, items)
        values = _by_key(block)
        if start == 0:
            first = block
            whole = {key: value.new_empty((num_items, *value.shape[1:])) for key, value in values.items()}
        _check_block(values, whole, items)
        for key, value in values.items():
            whole[key][start : start + len(items)] = value
    return whole if isinstance(first, dict) else tuple(whole.values())


def own_tensors(dataset: Dataset[Any]) -> tuple[Tensor, ...] | None:
    """The tensors of a `TensorDataset`, or of a part of one; None of other datasets."""
    if _is_tensors(dataset):
        return tuple(dataset.tensors)  # type: ignore[attr-defined]
    if isinstance(dataset, Subset) and _is_tensors(dataset.dataset):
        chosen = torch.as_tensor(dataset.indices, dtype=torch.long, device="cpu")
        return tuple(tensor[chosen] for tensor in dataset.dataset.tensors)  # type: ignore[attr-defined]
    return None


def length(dataset: Dataset[Any]) -> int:
    """The number of items; refuses datasets that have none, or whose items cannot be picked by number."""
    kind = type(dataset).__name__
    if isinstance(dataset, IterableDataset) or not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise ArgumentError(
            f"data is from {kind}, whose items only come one after another and are not counted; rows are drawn by "
            "number and scaled by how many there are. Pass a dataset with __len__ and __getitem__, or its tensors."
        )
    if len(dataset) == 0:
        raise DataError(f"data is empty: {kind} has 0 items and needs at least 1.")
    return len(dataset)


def as_columns(collated: Any) -> Columns:
    """A batch that a dataset or loader yields: a dict by argument, or a tuple in their order."""
    if isinstance(collated, Mapping):
        return dict(collated)
    return tuple(collated) if isinstance(collated, (list, tuple)) else (collated,)


def _is_tensors(dataset: Dataset[Any]) -> bool:
    return isinstance(dataset, TensorDataset) and type(dataset).__getitem__ is TensorDataset.__getitem__


def _collated(dataset: Any, items: range) -> Columns:
    try:
        return as_columns(default_collate([dataset[item] for item in items]))
    except (RuntimeError, TypeError, KeyError) as error:
        reason = (str(error).splitlines() or [""])[0].rstrip(" .:")
        raise DataError(
            f"Items {items.start} to {items.stop - 1} of {type(dataset).__name__} do not fit together: "
            f"{type(error).__name__}: {reason}. Every item must be a tensor, or a tuple or dict of them, of the same "
            "shapes."
        ) from error


def _by_key(block: Columns) -> dict[Any, Any]:
    values = block if isinstance(block, dict) else dict(enumerate(block))
    for key, value in values.items():
        if not isinstance(value, Tensor):
            raise DataError(
                f"Part {key!r} of the dataset's items is no number or tensor: joined, it is a {type(value).__name__}. "
                "Encode text as numbers, and leave out what is no data."
            )
    return values


def _check_block(values: Mapping[Any, Tensor], whole: Mapping[Any, Tensor], items: range) -> None:
    got = {key: (tuple(value.shape[1:]), value.dtype) for key, value in values.items()}
    wanted = {key: (tuple(value.shape[1:]), value.dtype) for key, value in whole.items()}
    if got != wanted:
        key = next(key for key in [*got, *wanted] if got.get(key) != wanted.get(key))
        raise DataError(
            f"Part {key!r} of the dataset's items has shape and type {got.get(key)} in items {items.start} to "
            f"{items.stop - 1}, and {wanted.get(key)} in the first. All items must be alike."
        )
