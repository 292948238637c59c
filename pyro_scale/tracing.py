"""Running a function once to record its tensor operations."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Literal

import torch
from torch import Tensor, fx
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx

LARGE = 2**20
"""A function of more numbers is traced on shapes alone: none of its results is in memory then."""


def traced(function: Callable[..., Any], given: Sequence[Tensor]) -> fx.GraphModule:
    """The operations of a function of tensors, at these tensors."""

    def trace(mode: Literal["real", "fake"]) -> fx.GraphModule:
        with torch.no_grad():
            return make_fx(functionalize(function), tracing_mode=mode, _allow_non_fake_inputs=True)(*given)

    _import_compiler()
    if sum(tensor.numel() for tensor in given) > LARGE:
        with suppress(Exception):  # what cannot be traced so, can perhaps on values; if not, that tells why
            return trace("fake")
    return trace("real")


def _import_compiler() -> None:
    """That of torch, which `make_fx` imports: a second, of which a third would go into looking for garbage."""
    with suppress(ImportError), _without_collection():
        import torch._dynamo  # noqa: F401


@contextmanager
def _without_collection() -> Iterator[None]:
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
