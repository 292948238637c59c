"""The user's data as named tensors with a common leading axis, matched to the model's arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pyro_scale.errors import ArgumentError, DataError

Model: TypeAlias = Callable[..., Any]

_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
DEVICES = ("cpu", "cuda", "mps", "xpu")


@dataclass(frozen=True)
class Data:
    """What the model is called with.

    Attributes:
        rows: argument -> tensor `(num_data, ...)`, cut into minibatches.
        constants: argument -> value, handed over whole.
        num_data: N, the number of rows.
        dtype: floating type of the data, and of the positions.
        device: where data and positions live.
    """

    rows: dict[str, Tensor]
    constants: dict[str, Any]
    num_data: int
    dtype: torch.dtype
    device: torch.device

    def take(self, indices: Tensor) -> dict[str, Tensor]:
        """Rows by index; `indices` of shape `(..., n)` give tensors `(..., n, ...)`."""
        return {name: value[indices] for name, value in self.rows.items()}


def read(
    model: Model,
    data: Any,
    constants: Mapping[str, Any] | None = None,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    optional: frozenset[str] = frozenset(),
) -> Data:
    """Converts and checks what a user passes as `data` and `constants`.

    Args:
        model: the Pyro model; its signature names the arguments.
        data: a tensor or array, a tuple of them in the order of the model's arguments, or a dict by argument.
        constants: keyword arguments handed over whole; their floating tensors and arrays follow dtype and device.
        dtype: floating type; None takes the widest of the floating data, or torch's default without any.
        device: None takes that of the first tensor in `data`.
        optional: arguments that may be missing even if the model has no default for them.

    Raises:
        ArgumentError: an argument the model does not take, or lacks; a dtype or device that cannot be used.
        DataError: no data, unequal lengths, an unusable type, NaN or infinity.
    """
    names = arguments_of(model)
    if constants is not None and not isinstance(constants, Mapping):
        raise ArgumentError(f"constants is a {type(constants).__name__}; it must be a dict by the model's arguments.")
    named = _by_name(data, names)
    if not named:
        raise DataError("data is empty: no array was passed. Pass the model's rows, as in data={'x': x, 'y': y}.")
    _check_names(model, named, constants or {}, names, optional)
    raw = {name: _tensor(name, value) for name, value in named.items()}
    num_data = _common_length(raw)
    dtype = _floating_type(raw, dtype)
    device = _device(next(iter(raw.values())).device if device is None else device)
    rows = {name: _place(value, dtype, device) for name, value in raw.items()}
    for name, value in rows.items():
        _check_finite(name, value)
    placed = pytree.tree_map(lambda leaf: _place_constant(leaf, dtype, device), dict(constants or {}))
    return Data(rows, placed, num_data, dtype, device)


def arguments_of(model: Model) -> dict[str, inspect.Parameter]:
    """The parameters of the model's signature, by name."""
    if not callable(model) or isinstance(model, type):
        what = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
        raise ArgumentError(f"The model is {what}; it must be a Pyro model: a function, or an object that is callable.")
    function = model.forward if isinstance(model, torch.nn.Module) else model
    return dict(inspect.signature(function).parameters)


def _by_name(data: Any, names: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    if isinstance(data, Mapping):
        return dict(data)
    if data is None:
        return {}
    values = data if isinstance(data, tuple) else (data,)
    positional = [name for name, parameter in names.items() if parameter.kind not in _VARIADIC]
    if len(values) > len(positional):
        raise ArgumentError(
            f"data holds {len(values)} arrays, but the model takes {len(positional)} arguments "
            f"({', '.join(positional) or 'none'}). Pass a dict with the model's argument names as keys."
        )
    return dict(zip(positional, values, strict=False))


def _check_names(
    model: Model,
    data: Mapping[str, Any],
    constants: Mapping[str, Any],
    names: Mapping[str, inspect.Parameter],
    optional: frozenset[str],
) -> None:
    if both := sorted(data.keys() & constants.keys()):
        raise ArgumentError(f"'{both[0]}' is in both data and constants; keep it in one of them.")
    given = [*data, *constants]
    open_ended = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in names.values())
    taken = [name for name, parameter in names.items() if parameter.kind not in _VARIADIC]
    label = getattr(model, "__name__", type(model).__name__)
    if unnamed := [name for name, parameter in names.items() if parameter.kind is inspect.Parameter.POSITIONAL_ONLY]:
        raise ArgumentError(
            f"The model's argument '{unnamed[0]}' is positional only, and models are called by names of arguments. "
            f"Remove the '/' from the signature of {label}."
        )
    if unknown := [name for name in given if name not in taken and not open_ended]:
        raise ArgumentError(
            f"'{unknown[0]}' is no argument of the model: {label} takes {', '.join(taken) or 'nothing'}. "
            "Rename or remove it."
        )
    required = [name for name in taken if names[name].default is inspect.Parameter.empty]
    if missing := [name for name in required if name not in given and name not in optional]:
        raise ArgumentError(
            f"The model's argument '{missing[0]}' is missing: got {', '.join(given)}. Add it to data if it has a "
            "row for each observation, otherwise to constants."
        )


def _tensor(name: str, value: Any) -> Tensor:
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
    needs_copy = not array.flags.writeable or any(stride < 0 for stride in array.strides)
    return torch.from_numpy(array.copy() if needs_copy else array)


def _common_length(rows: Mapping[str, Tensor]) -> int:
    lengths = {name: len(value) for name, value in rows.items()}
    first, num_data = next(iter(lengths.items()))
    for name, length in lengths.items():
        if length != num_data:
            raise DataError(
                f"data['{name}'] has {length} rows and data['{first}'] has {num_data}; all must have the same number. "
                "Put what is not one row an observation in constants."
            )
    if num_data == 0:
        raise DataError(f"data['{first}'] is empty: it has 0 rows and needs at least 1.")
    return num_data


def _floating_type(rows: Mapping[str, Tensor], dtype: torch.dtype | None) -> torch.dtype:
    if dtype is not None:
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise ArgumentError(f"dtype is {dtype!r}; it must be a floating torch dtype, as torch.float64.")
        return dtype
    found = [value.dtype for value in rows.values() if value.is_floating_point()]
    widest = found[0] if found else torch.get_default_dtype()
    for other in found:
        widest = torch.promote_types(widest, other)
    return widest


def _device(device: str | torch.device) -> torch.device:
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ArgumentError(f"device is {device!r}, which cannot be used here: {reason} Try device='cpu'.") from error
    if chosen.type not in DEVICES:
        raise ArgumentError(f"device is {device!r}; it must be one of the kinds {names_of(DEVICES)}.")
    return chosen


def _place(value: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    return value.to(device=device, dtype=dtype) if value.is_floating_point() else value.to(device)


def _place_constant(leaf: Any, dtype: torch.dtype, device: torch.device) -> Any:
    if isinstance(leaf, np.ndarray) and leaf.dtype.kind in "fiub":
        leaf = torch.from_numpy(np.array(leaf))
    return _place(leaf.detach(), dtype, device) if isinstance(leaf, Tensor) else leaf


def _check_finite(name: str, value: Tensor) -> None:
    if not value.is_floating_point() or bool(torch.isfinite(value).all()):
        return
    bad = ~torch.isfinite(value.reshape(len(value), -1)).all(1)
    row = int(bad.nonzero()[0])
    kind = "NaN" if bool(torch.isnan(value[row]).any()) else "infinity"
    raise DataError(
        f"data['{name}'] holds {kind} in row {row} (bad rows: {int(bad.sum())} of {len(value)}); all values must be "
        "finite. Drop these rows or impute them; mask(...) may hide a row, its value may then be any finite number."
    )


def names_of(values: Sequence[str]) -> str:
    """`'a', 'b'`, for messages."""
    return ", ".join(f"'{value}'" for value in values)
