"""Inductor's C++ for CPUs, corrected and made quicker: classes of its code generator, imported when code is generated.

Around the kernels of a loop, Inductor's code takes memory for every intermediate tensor in every turn, hands it back,
and makes handles of all tensors that the loop sees: microseconds, where the kernels of a small model take half of one.
Here small intermediates of a loop keep their memory from turn to turn, and what the loop sees is borrowed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any
from unittest.mock import patch

from torch._inductor import ir
from torch._inductor.codegen.common import device_codegens, init_backend_registration
from torch._inductor.codegen.cpp import CppScheduling, CppTile2DKernel
from torch._inductor.codegen.cpp_wrapper_cpu import CppWrapperCpu
from torch._inductor.codegen.wrapper import ReuseLine
from torch._inductor.virtualized import V

MOST_BYTES = 2**15
"""Of an intermediate tensor that keeps its memory; for larger ones, to take it costs little beside filling it."""

HELPERS = """
namespace pyro_scale {

// A tensor that outlives this handle. Whoever needs a handle of their own is given one.
class Borrowed {
 public:
  explicit Borrowed(AtenTensorHandle handle) : handle_(handle) {
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(handle, &data_));
  }
  operator AtenTensorHandle() const { return handle_; }
  operator RAIIAtenTensorHandle() const {
    AtenTensorHandle own;
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_new_tensor_handle(handle_, &own));
    return RAIIAtenTensorHandle(own);
  }
  AtenTensorHandle get() const { return handle_; }
  void* data_ptr() const { return data_; }
  void reset() const {}

 private:
  AtenTensorHandle handle_;
  void* data_;
};

inline RAIIAtenTensorHandle room(
    std::initializer_list<int64_t> sizes, std::initializer_list<int64_t> strides, int32_t dtype) {
  AtenTensorHandle handle;
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      sizes.size(), sizes.begin(), strides.begin(), dtype, aoti_torch_device_type_cpu(), 0, &handle));
  return RAIIAtenTensorHandle(handle);
}

}  // namespace pyro_scale
"""


@contextmanager
def corrected() -> Iterator[None]:
    """While it lasts, Inductor generates the code that is described above."""
    init_backend_registration()
    with (
        patch.object(CppTile2DKernel, "transform_indexing", _once(CppTile2DKernel.transform_indexing)),
        patch.object(CppScheduling, "can_fuse_horizontal", _not_where_scattered(CppScheduling.can_fuse_horizontal)),
        patch.object(CppScheduling, "can_fuse_vertical", _not_where_scattered(CppScheduling.can_fuse_vertical)),
        patch.object(device_codegens["cpu"], "cpp_wrapper_codegen", Wrapper),
    ):
        yield


Base: Any = CppWrapperCpu  # not annotated


class Wrapper(Base):  # type: ignore[misc]
    """The code around kernels."""

    @staticmethod
    def create(*_: Any) -> Wrapper:
        return Wrapper()

    def __init__(self) -> None:
        super().__init__()
        self.tests: list[Any] = []

    def codegen_while_loop(self, while_loop: Any, stack_output: bool = False) -> None:
        self.tests.append(while_loop.cond_subgraph.graph)
        super().codegen_while_loop(while_loop, stack_output)

    def write_header(self) -> None:
        super().write_header()
        self.header.splice(HELPERS)

    def codegen_subgraph_prefix(self, subgraph: Any, outer_inputs: Any, outer_outputs: Any) -> None:
        """What a loop sees: under its own names."""
        inner_inputs = subgraph.graph.graph_inputs.items()
        for (inner, value), outer in zip(inner_inputs, outer_inputs, strict=True):
            if not isinstance(value, ir.TensorBox):
                continue
            if outer.isidentifier():
                self.writeline(f"pyro_scale::Borrowed {inner}({outer});")
            else:  # an expression, whose result nobody else holds
                self.writeline(f"AtenTensorHandle {inner}_handle;")
                self.writeline(f"AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_assign_tensors_out({outer}, &{inner}_handle));")
                self.writeline(f"RAIIAtenTensorHandle {inner}({inner}_handle);")

    def make_buffer_allocation(self, buffer: Any) -> str:
        """Memory of an intermediate tensor."""
        if not self._keeps_memory(buffer):
            allocation: str = super().make_buffer_allocation(buffer)
            return allocation
        name, dtype = buffer.get_name(), self.codegen_dtype(buffer.get_dtype())
        sizes, strides = (_braced(numbers) for numbers in (buffer.get_size(), buffer.get_stride()))
        # each thread has its own: one may run the code while another does
        kept = f"static thread_local RAIIAtenTensorHandle {name}_kept = pyro_scale::room({sizes}, {strides}, {dtype});"
        return f"{kept} pyro_scale::Borrowed {name}({name}_kept);"

    def _keeps_memory(self, buffer: Any) -> bool:
        """Whether a tensor is a small one of a loop, and not carried to the next turn, which would write to it."""
        shape, strides = buffer.get_size(), buffer.get_stride()
        if len(self.codegened_graph_stack) < 2 or not self.is_statically_known_list_of_ints([*shape, *strides]):
            return False
        within = list(V.graph.get_allocation_size(buffer)) == list(shape)
        small = int(buffer.get_numel()) * buffer.get_dtype().itemsize <= MOST_BYTES
        graph = self.get_codegened_graph()
        carried = graph not in self.tests and self._last_name(buffer.get_name()) in graph.get_output_names()
        return within and small and not carried and buffer.get_device().type == "cpu" and not buffer.get_is_pinned()

    def _last_name(self, name: str) -> str:
        """The last of the tensors that take a tensor's memory over, one after another."""
        while name in self.taken_over:
            name = self.taken_over[name]
        return name

    @cached_property
    def taken_over(self) -> dict[str, str]:
        """Tensor -> the one that takes its memory over; asked for once all lines of the code are planned."""
        reused = [line for line in self.lines if isinstance(line, ReuseLine)]
        return {line.node.get_name(): line.reused_as.get_name() for line in reused}


def _braced(numbers: Any) -> str:
    return f"{{{', '.join(f'{number}L' for number in numbers)}}}"


def _not_where_scattered(can_fuse: Callable[[Any, Any, Any], bool]) -> Callable[[Any, Any, Any], bool]:
    """Whether two loops may be joined: not where one writes at indices.

    In torch 2.13 such a loop is joined with one that reads what it writes, which then reads before all is written.
    """

    def writes_at_indices(node: Any) -> bool:
        return any(isinstance(getattr(part.node, "data", None), ir.Scatter) for part in node.get_nodes())

    def decide(scheduling: Any, one: Any, other: Any) -> bool:
        return not writes_at_indices(one) and not writes_at_indices(other) and can_fuse(scheduling, one, other)

    return decide


def _once(transformed: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """A transformation of indices that a second application leaves as they are.

    Where two axes are tiled, torch 2.13 applies it twice to the index of an atomic addition, which then writes to other
    places, beyond the tensor even.
    """

    def transform(kernel: Any, index: Any) -> Any:
        result = transformed(kernel, index)
        return result if result.free_symbols - index.free_symbols else index

    return transform
