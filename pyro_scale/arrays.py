"""Arrays of any make as tensors, one row an observation, without a copy wherever torch can share their memory."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_scale.errors import ArgumentError, DataError

BLOCK_NUMBERS = 2**20
"""At most so many numbers are looked at side by side: data may be mapped from files larger than memory."""


def as_rows(name: str, value: Any) -> Tensor:
    """A tensor with a row for each observation.

    It shares the memory of a tensor or array whose type torch has, be that read-only or mapped from a file.

    Raises:
        DataError: it has no rows, or no type that can be used.
    """
    if isinstance(value, Tensor):
        tensor = value.detach()
    elif hasattr(value, "__array__"):
        tensor = _from_array(name, value)
    elif value is None:
        raise DataError(f"data['{name}'] is None: leave it out, or pass the observations.")
    else:
        raise DataError(
            f"data['{name}'] is a {type(value).__name__}; it must be a tensor or array with a row for each "
            "observation. Other arguments of the model belong in constants."
        )
    if tensor.ndim == 0:
        raise DataError(f"data['{name}'] is a scalar; it needs a row for each observation. Put it in constants.")
    if tensor.is_complex() or tensor.layout is not torch.strided:
        raise DataError(f"data['{name}'] is complex or sparse; it must be dense and floating, integer or boolean.")
    # torch refuses int8 and int16 as indices, and takes uint8 for a mask; images stay as small as they are
    small = (torch.int8, torch.int16, torch.uint8) if tensor.ndim == 1 else (torch.int8, torch.int16)
    return tensor.long() if tensor.dtype in small else tensor


def _from_array(name: str, value: Any) -> Tensor:
    if np.ma.is_masked(value):
        raise DataError(
            f"data['{name}'] is a masked array with {int(np.ma.getmaskarray(value).sum())} values masked. Fill them, "
            "and pass the mask as an argument of its own for pyro.poutine.mask or obs_mask."
        )
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        hint = (
            " Encode text as numbers (pandas: cat.codes), and drop missing values." if array.dtype.kind in "OUS" else ""
        )
        raise DataError(f"data['{name}'] has dtype {array.dtype}; it must be floating, integer or boolean.{hint}")
    wide = array.dtype.itemsize > 8  # long double, which torch lacks
    if wide or not array.dtype.isnative:
        array = array.astype(np.float64 if wide else array.dtype.newbyteorder("="))
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int64)
    if any(stride < 0 or stride % array.itemsize for stride in array.strides):  # torch cannot step so
        array = array.copy()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # nothing writes to data
        return torch.from_numpy(array)


def place(value: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """On the device, floating values in the type: the tensor itself where it is so already."""
    return value.to(device=device, dtype=dtype) if value.is_floating_point() else value.to(device)


def place_constant(leaf: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """As `place`, for tensors and arrays; others unchanged."""
    if isinstance(leaf, np.ndarray) and leaf.dtype.kind in "fiub":
        leaf = torch.from_numpy(np.array(leaf))
    return place(leaf.detach(), dtype, device) if isinstance(leaf, Tensor) else leaf


def as_numbers(name: str, value: Any) -> Tensor:
    """A tensor of the numbers in a tensor, array, table or nested list, without gradients.

    Raises:
        ArgumentError: it holds something else.
    """
    try:
        found = value if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))
    except (TypeError, ValueError, RuntimeError) as error:
        kind = type(value).__name__
        raise ArgumentError(f"{name}: got a {kind}; pass numbers in a tensor, an array or a list.") from error
    return found.detach()


def check_finite(name: str, value: Tensor) -> None:
    """Raises `DataError` where there is NaN or infinity, and tells the rows."""
    if not value.is_floating_point() or all(bool(torch.isfinite(block).all()) for _, block in blocks(value)):
        return
    found = []
    for start, block in blocks(value):
        bad = ~torch.isfinite(block.reshape(len(block), -1)).all(1)
        found += (start + bad.nonzero()[:, 0]).tolist()
    row = found[0]
    kind = "NaN" if bool(torch.isnan(value[row]).any()) else "infinity"
    raise DataError(
        f"data['{name}'] holds {kind} in row {row} (bad rows: {len(found)} of {len(value)}); all values must be "
        "finite. Drop these rows or impute them; mask(...) may hide a row, its value may then be any finite number."
    )


def blocks(value: Tensor) -> Iterator[tuple[int, Tensor]]:
    """(first row, rows) of bounded size, as views."""
    size = max(1, BLOCK_NUMBERS * len(value) // max(1, value.numel()))
    for start in range(0, len(value), size):
        yield start, value[start : start + size]
