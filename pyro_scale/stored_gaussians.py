"""Normal distributions as arrays and JSON, and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_scale.gaussians import (
    Block,
    DenseGaussian,
    DiagonalGaussian,
    HeldGaussian,
    KroneckerGaussian,
    LowRankGaussian,
)
from pyro_scale.types import Gaussian

KINDS: dict[str, Any] = {
    kind.__name__: kind
    for kind in (Block, DenseGaussian, DiagonalGaussian, HeldGaussian, KroneckerGaussian, LowRankGaussian)
}


def taken_apart(gaussian: Gaussian) -> tuple[Any, dict[str, Tensor]]:
    """Its fields as JSON, with names in place of tensors, and the tensors by name, as "mean/w".

    Example:
        >>> taken_apart(DiagonalGaussian({"w": torch.zeros(1)}, {"w": torch.ones(1)}))[1]
        {'mean/w': tensor([0.]), 'sd/w': tensor([1.])}
    """
    tensors: dict[str, Tensor] = {}

    def part(value: Any, *path: str) -> Any:
        if isinstance(value, Tensor):
            name = "/".join(path)
            tensors[name] = value
            return {"tensor": name, "dtype": str(value.dtype).removeprefix("torch.")}
        if isinstance(value, Mapping):
            return {"sites": {name: part(leaf, *path, name) for name, leaf in value.items()}}
        if isinstance(value, str):
            return {"text": value}
        kind = type(value).__name__
        if kind in KINDS:
            return {"kind": kind, "fields": {name: part(getattr(value, name), *path, name) for name in _fields(value)}}
        return [part(one, *path, str(place)) for place, one in enumerate(value)]

    return part(gaussian), tensors


def put_together(record: Any, tensors: Mapping[str, Any]) -> Any:
    """The inverse, from arrays or tensors by name."""
    if isinstance(record, list):
        return tuple(put_together(one, tensors) for one in record)
    if "text" in record:
        return record["text"]
    if "tensor" in record:
        return torch.as_tensor(tensors[record["tensor"]]).to(getattr(torch, record["dtype"]))
    if "sites" in record:
        return {name: put_together(one, tensors) for name, one in record["sites"].items()}
    fields = {name: put_together(one, tensors) for name, one in record["fields"].items()}
    return KINDS[record["kind"]](**fields)


def placed(gaussian: Gaussian, dtype: torch.dtype, device: torch.device) -> Gaussian:
    """The same, of another floating type or on another device."""
    record, tensors = taken_apart(gaussian)

    def retyped(part: Any) -> Any:
        if isinstance(part, list):
            return [retyped(one) for one in part]
        if "tensor" in part:
            return {**part, "dtype": str(dtype).removeprefix("torch.")}
        return {key: value if key == "kind" else _mapped(retyped, value) for key, value in part.items()}

    moved = {name: tensor.to(device) for name, tensor in tensors.items()}
    found: Gaussian = put_together(retyped(record), moved)
    return found


def _mapped(function: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: function(value) for name, value in values.items()}


def named(record: Any) -> list[str]:
    """Names of the tensors of a record, in order."""
    if isinstance(record, list):
        return [name for one in record for name in named(one)]
    if "tensor" in record or "text" in record:
        return [record["tensor"]] if "tensor" in record else []
    return [name for one in record.get("sites", record.get("fields")).values() for name in named(one)]


def _fields(value: Any) -> list[str]:
    return list(value._fields) if hasattr(value, "_fields") else [field.name for field in dataclasses.fields(value)]
