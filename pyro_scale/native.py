"""Functions of tensors compiled to native code by Inductor. What is taken from torch's private interfaces is here.

What is changed of the code that Inductor generates is in `inductor.py`, which is imported when code is generated.

These may change with any version of torch. Whatever goes wrong in them, an import included, is a `NativeError`, and
callers go on without.
"""

from __future__ import annotations

import logging
import os
import platform
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from pyro_scale.cached import kept_by, write

Compiled = Callable[[list[Tensor]], Sequence[Tensor]]

MOST_NODES = 20_000
"""Larger graphs are not compiled: it would take the better part of an hour."""

OPTIONS = {
    # graphs with loops are not kept there
    "fx_graph_cache": False,
    # loops that were joined side by side read tensors before others had written to them; joining gains nothing here
    "cpp.max_horizontal_fusion_size": 1,
    "cpp.fallback_scatter_reduce_sum": False,
    # the processor's flags say which vector instructions it has; trial programs would take seconds in every process
    "cpp.vec_isa_ok": True,
    # numbers of a thread, as of torch's own loops: on a busy machine to wait for a second one took 20 times as long
    "cpp.min_chunk_size": 2**15,
    # an LSTM's kernel returns a workspace of another size than torch says; what loops give is compared by ourselves
    "size_asserts": False,
}
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}
"""Native code must give what the recorded function gives, up to rounding relative to the largest number."""
DATA_POINTER = "_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR"


class NativeError(Exception):
    """A function cannot be compiled; the message says why."""


def compile_native(
    function: Callable[..., Sequence[Tensor]],
    example: Sequence[Tensor],
    *,
    described: object = None,
) -> Compiled:
    """Compiles a function of tensors, which may write to them; its result takes a list of tensors, which it empties.

    The tensors of every call have the shapes, strides and types of the example.

    Args:
        function: of tensors, to tensors.
        example: what it takes.
        described: all that tells the function from others, of strings and numbers: a process that compiled it leaves
            the code to later ones. None to leave nothing.

    Raises:
        NativeError: no C++ compiler, an operation that cannot be lowered, a graph that is too large, another torch.

    Example:
        >>> compiled = compile_native(lambda x: [x.sin() + 1], [torch.zeros(3)])
        >>> compiled([torch.zeros(3)])[0]
        tensor([1., 1., 1.])
    """
    example = [tensor.detach() for tensor in example]
    note = None if described is None else _note(described, example)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is deprecated within torch
            # enabled, as where recorded graphs run; none of the tensors requires a gradient
            return torch.enable_grad()(_of_earlier(note) or _compiled(function, example, note))
    except NativeError:
        raise
    except Exception as error:  # of a dozen types, from torch and from the C++ compiler
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        kind = type(error).__name__
        said = lines[0].rstrip(".") if lines else "no message"
        # Inductor's own error starts with the type of the one that it wraps
        raise NativeError(said if kind == "InductorError" else f"{kind}: {said}") from error


def agree(found: Tensor, expected: Tensor) -> bool:
    """Whether native code gives what the recorded function gives, up to rounding."""
    if not expected.is_floating_point():
        return torch.equal(found, expected)
    apart = (found - expected).abs().sum()  # 0 for an empty tensor
    return bool(apart <= TOLERANCE[expected.dtype] * expected.abs().sum())


def _compiled(function: Callable[..., Sequence[Tensor]], example: Sequence[Tensor], note: Path | None) -> Compiled:
    """What Inductor makes of a function; a note tells later processes where its code is."""
    from torch._guards import TracingContext, tracing
    from torch._inductor import config
    from torch._inductor.compile_fx import compile_fx_inner
    from torch._inductor.decomposition import select_decomp_table
    from torch._inductor.virtualized import V
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    from pyro_scale.inductor import corrected

    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    fakes: list[Any] = [mode.from_tensor(tensor, static_shapes=True) for tensor in example]
    with torch.no_grad():
        graph = make_fx(function, decomposition_table=select_decomp_table(), _allow_non_fake_inputs=True)(*fakes)
        if (num_nodes := _num_nodes(graph)) > MOST_NODES:
            raise NativeError(f"the graph has {num_nodes} operations, more than {MOST_NODES}")
        with (
            V.set_fake_mode(mode),
            tracing(TracingContext(mode)),
            config.patch(OPTIONS),
            corrected(),
            _quiet("torch._inductor"),
        ):
            compiled: Any = compile_fx_inner(graph, fakes, cpp_wrapper=all(fake.device.type == "cpu" for fake in fakes))
    if note is not None and not compiled.constants:
        # a folder that cannot be written to; code of another form
        with suppress(OSError, AttributeError, KeyError):
            write(note, compiled.current_callable.__globals__["inductor_entry"].__self__.__file__)
    lowered: Compiled = compiled
    return lowered


def _note(described: object, example: Sequence[Tensor]) -> Path | None:
    """Where the path of a function's code is written: by all that the code depends on."""
    if any(tensor.device.type != "cpu" for tensor in example):
        return None
    tensors = [(tuple(each.shape), each.stride(), str(each.dtype)) for each in example]
    chosen = sorted(item for item in os.environ.items() if item[0].startswith("TORCHINDUCTOR_"))
    python = (sys.implementation.cache_tag, platform.machine())
    settings = (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), chosen)
    version = (torch.__version__, torch.backends.cpu.get_cpu_capability(), python)
    return kept_by((version, settings, tensors, described), "code")


def _of_earlier(note: Path | None) -> Compiled | None:
    """The code that an earlier process made of the same function. Inductor itself takes a second to import."""
    if note is None or not note.exists():
        return None
    try:
        library = note.read_text()
        guards: Any = torch._C._dynamo.guards
        # the code asks for it
        os.environ[DATA_POINTER] = str(guards._torchinductor_pyobject_tensor_data_ptr)
        spec = spec_from_file_location(f"{Path(library).stem}.inductor_entry_cpp", library)
        assert spec is not None and spec.loader is not None
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        entry = module.inductor_entry_cpp
        conversions: Any = torch._C._aoti
        to_handles = conversions.unsafe_alloc_void_ptrs_from_tensors
        from_handles = conversions.alloc_tensors_by_stealing_from_void_ptrs
    except Exception:  # removed, or of another version: made anew
        return None

    def compiled(tensors: list[Tensor]) -> Sequence[Tensor]:
        handles = to_handles(tensors)
        tensors.clear()
        results: Sequence[Tensor] = from_handles(entry(handles))
        return results

    return compiled


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Without what a logger of torch tells its own developers."""
    found = logging.getLogger(name)
    level = found.level
    found.setLevel(logging.ERROR)
    try:
        yield
    finally:
        found.setLevel(level)


def repeated(
    test: Callable[..., Tensor],
    body: Callable[..., Sequence[Tensor]],
    carried: Sequence[Tensor],
    fixed: Sequence[Tensor],
) -> Sequence[Tensor]:
    """Within a function to compile: `body` over and over, while `test` of the same arguments says so.

    Args:
        test: returns a 0-d boolean.
        body: returns the next `carried`; it may write to `fixed`.
        carried: tensors that change from one turn to the next.
        fixed: tensors that both see too.
    """
    from torch._higher_order_ops.while_loop import while_loop_op

    loop: Any = while_loop_op
    result: Sequence[Tensor] = loop(test, body, tuple(carried), tuple(fixed))
    return result


def _num_nodes(graph: fx.GraphModule) -> int:
    """Of a graph, and of those within it."""
    return sum(len(module.graph.nodes) for module in graph.modules() if isinstance(module, fx.GraphModule))
