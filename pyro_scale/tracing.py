"""Running a function once to record its tensor operations.

torch's `make_fx` does that too, among much else, and what it imports takes longer than many a run. So it serves only
where a `Recorder` does not do.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, fx
from torch.func import functionalize

from pyro_scale.kinds import Kind
from pyro_scale.recorder import Recorder, ValueRead

NO_SHAPE_CHECKS = "TORCH_DISABLE_FUNCTIONALIZATION_META_REFERENCE"

Function = Callable[..., Sequence[Tensor]]


def traced(function: Function, given: Sequence[Tensor]) -> fx.GraphModule:
    """The operations of a function of tensors, at tensors that it has been called with before.

    Raises:
        ValueRead: a number that is read out of a tensor may decide its course.
        Exception: whatever the function raises, or torch where it cannot be traced.
    """
    given = [tensor.detach() for tensor in given]  # tensors of its own: one that is given twice is two inputs
    try:
        return _by_recorder(function, given)
    except ValueRead:
        raise
    except Exception:
        with suppress(Exception):  # an operation that takes functions, or another torch
            return _by_make_fx(function, given)
        raise


def _by_recorder(function: Function, given: Sequence[Tensor]) -> fx.GraphModule:
    recorder = Recorder(given)
    with torch.no_grad(), _without_shape_checks(), recorder:
        results = functionalize(function)(*given)
    return recorder.graph(results)


def _by_make_fx(function: Function, given: Sequence[Tensor]) -> fx.GraphModule:
    from torch.fx.experimental.proxy_tensor import make_fx

    with torch.no_grad():
        trace: Any = make_fx(functionalize(function), _allow_non_fake_inputs=True)
        module: fx.GraphModule = trace(*given)
    for part in module.modules():
        for node in part.graph.nodes if isinstance(part, fx.GraphModule) else ():
            value = node.meta.get("val")
            node.meta = {"kind": Kind.of(value)} if isinstance(value, Tensor) else {}
    return module


@contextmanager
def _without_shape_checks() -> Iterator[None]:
    """`functionalize` does not try operations that write to a tensor on shapes first, which imports symbolic shapes.

    Torch looks for the variable once in a process, and leaves the checks out from then on. They would find an operation
    that does not fit what it writes to; but the function has been called before.
    """
    before = os.environ.get(NO_SHAPE_CHECKS)
    os.environ[NO_SHAPE_CHECKS] = "1" if before is None else before
    try:
        yield
    finally:
        if before is None:
            del os.environ[NO_SHAPE_CHECKS]
