"""The user's data as named tensors with a common leading axis, matched to the model's arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import Dataset

from pyro_scale.arrays import as_rows, check_finite, place, place_constant
from pyro_scale.datasets import columns
from pyro_scale.errors import ArgumentError, DataError

Model: TypeAlias = Callable[..., Any]

_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
DEVICES = ("cpu", "cuda", "mps", "xpu")
FEW_ROWS = 5
"""A model is run on so many rows where it makes no difference which, and how many."""


@dataclass(frozen=True)
class Data:
    """What the model is called with.

    Attributes:
        rows: argument -> tensor `(num_data, ...)`, cut into minibatches; or `plate` -> their indices.
        constants: argument -> value, handed over whole.
        num_data: N, the number of rows.
        dtype: floating type of the data, and of the positions.
        device: where data and positions live.
        plate: name of the plate by whose indices the model itself reads its rows; None where it is passed them.
        whole: with a plate, the arguments among `constants` that have a row for each of its indices.
        subsample_size: with a plate, how many rows it draws by itself; None if that is left open.
        params: parameters of the model without a prior -> value; filled by the first run, and the same ever after.
    """

    rows: dict[str, Tensor]
    constants: dict[str, Any]
    num_data: int
    dtype: torch.dtype
    device: torch.device
    params: dict[str, Tensor] = field(default_factory=dict)
    plate: str | None = None
    whole: tuple[str, ...] = ()
    subsample_size: int | None = None

    @property
    def columns(self) -> dict[str, Tensor]:
        """Argument -> all its rows, whether the model is passed some of them or reads them itself."""
        return self.rows if self.plate is None else {name: self.constants[name] for name in self.whole}

    def columns_at(self, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As `columns`, at some of the rows."""
        if self.plate is None:
            return dict(rows)
        return {name: value[rows[self.plate]] for name, value in self.columns.items()}

    @property
    def remedy(self) -> str:
        """What a model needs whose rows do not follow the data."""
        if self.plate is None:
            return "Take sizes from the arguments, as in plate('data', len(x)), and pass per-row arrays in data."
        return (
            f"Let the indices of plate '{self.plate}' choose the rows of everything in it, as in `with "
            f"pyro.plate('{self.plate}', {self.num_data}) as idx: ... x[idx] ... obs=y[idx]`, or pass what has a row "
            "for each observation in data."
        )

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
        data: a tensor or array, a tuple of them in the order of the model's arguments, a dict by argument, or a
            `Dataset`; empty for a model that needs none (`num_data` is then 0).
        constants: keyword arguments handed over whole; their floating tensors and arrays follow dtype and device.
        dtype: floating type; None takes the widest of the floating data, or torch's default without any.
        device: None takes that of the first tensor in `data`.
        optional: arguments that may be missing even if the model has no default for them.

    Raises:
        ArgumentError: an argument the model does not take, or lacks; a dtype or device that cannot be used.
        DataError: no data though the model takes some, unequal lengths, an unusable type, NaN or infinity.
    """
    names = arguments_of(model)
    if constants is not None and not isinstance(constants, Mapping):
        raise ArgumentError(f"constants is a {type(constants).__name__}; it must be a dict by the model's arguments.")
    named = by_name(data, names)
    if not named and _required(names) - (constants or {}).keys():
        raise DataError("data is empty: no array was passed. Pass the model's rows, as in data={'x': x, 'y': y}.")
    _check_names(model, named, constants or {}, names, optional)
    raw = {name: as_rows(name, value) for name, value in named.items()}
    num_data = _common_length(raw) if raw else 0
    dtype = _floating_type(raw, dtype)
    device = _device(next((value.device for value in raw.values()), "cpu") if device is None else device)
    rows = {name: place(value, dtype, device) for name, value in raw.items()}
    for name, value in rows.items():
        check_finite(name, value)
    placed = pytree.tree_map(lambda leaf: place_constant(leaf, dtype, device), dict(constants or {}))
    return Data(rows, placed, num_data, dtype, device)


def arguments_of(model: Model) -> dict[str, inspect.Parameter]:
    """The parameters of the model's signature, by name."""
    if not callable(model) or isinstance(model, type):
        what = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
        raise ArgumentError(f"The model is {what}; it must be a Pyro model: a function, or an object that is callable.")
    function = model.forward if isinstance(model, torch.nn.Module) else model
    return dict(inspect.signature(function).parameters)


def by_name(data: Any, names: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    """Argument -> what `data` holds for it."""
    if isinstance(data, Mapping):
        return dict(data)
    if data is None:
        return {}
    if isinstance(data, Dataset):
        return by_name(columns(data), names)
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
    if missing := [name for name in taken if name in _required(names) - {*given, *optional}]:
        raise ArgumentError(
            f"The model's argument '{missing[0]}' is missing: got {', '.join(given)}. Add it to data if it has a "
            "row for each observation, otherwise to constants."
        )


def _required(names: Mapping[str, inspect.Parameter]) -> set[str]:
    empty = inspect.Parameter.empty
    return {name for name, each in names.items() if each.kind not in _VARIADIC and each.default is empty}


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
        reason = str(error).splitlines()[0].removesuffix(".")
        raise ArgumentError(f"device is {device!r}, which cannot be used here: {reason}. Try device='cpu'.") from error
    if chosen.type not in DEVICES:
        raise ArgumentError(f"device is {device!r}; it must be one of the kinds {names_of(DEVICES)}.")
    return chosen


def names_of(values: Sequence[str]) -> str:
    """`'a', 'b'`, for messages."""
    return ", ".join(f"'{value}'" for value in values)
