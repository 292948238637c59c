"""Writing down the tensor operations that reach torch's dispatcher."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _python_dispatch
from torch.utils import _pytree as pytree
from torch.utils.weak import WeakTensorKeyDictionary

from pyro_scale.kinds import Kind

aten: Any = torch.ops.aten


class ValueRead(RuntimeError):
    """A number is read out of a tensor that may hold another in the next call; the message says by which operation."""


class Recorder(_python_dispatch.TorchDispatchMode):
    """While it is entered, every operation is run and becomes a node of a graph.

    Of transforms like `vmap` and `grad`, the operations on plain tensors are left that they come to.

    Args:
        given: inputs of the graph; each is a tensor of its own.
    """

    def __init__(self, given: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._graph = fx.Graph()
        self._constants: dict[str, Tensor] = {}  # neither given nor results
        self._nodes: Any = WeakTensorKeyDictionary()  # a tensor that nobody else holds is freed
        self._changing: set[fx.Node] = set()  # what they give may be something else in the next call
        self._has_written = False
        self._refused: ValueRead | None = None
        for number, tensor in enumerate(given):
            self._note(self._graph.placeholder(f"given_{number}"), tensor, changes=True)

    def graph(self, results: Sequence[Tensor]) -> fx.GraphModule:
        """The graph, with what it returns; every node's `meta["kind"]` says what it gives, where that is one tensor.

        Raises:
            ValueRead: by now, if whoever was recorded did not let it out.
        """
        if self._refused is not None:
            raise self._refused
        self._graph.output([self._node(result) for result in results])
        return fx.GraphModule(self._constants, self._graph)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False, or torch imports its compiler, to have it leave `__torch_dispatch__` alone."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        leaves, structure = pytree.tree_flatten((args, kwargs))
        if _python_dispatch.autograd_would_have_decomposed(func, leaves):  # it has not, in inference mode
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        if func is aten.lift_fresh.default:
            func = aten.lift_fresh_copy.default  # who writes to the result must not change the constant
        leaves = [self._node(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        changes = torch.Tag.nondeterministic_seeded in func.tags or not self._changing.isdisjoint(leaves)
        if torch.Tag.data_dependent_output in func.tags:
            if changes or self._has_written:
                self._refused = ValueRead(f"{func} reads a value that may be another in the next call")
                raise self._refused
            return func(*args, **kwargs)
        self._has_written |= func._schema.is_mutable
        result = func(*args, **kwargs)
        self._note(self._graph.call_function(func, *pytree.tree_unflatten(leaves, structure)), result, changes)
        return result

    def _node(self, tensor: Tensor) -> fx.Node:
        """What gives a tensor in the graph."""
        if tensor not in self._nodes:
            name = f"_tensor_constant{len(self._constants)}"
            self._constants[name] = tensor
            self._note(self._graph.get_attr(name), tensor, changes=False)
        node: fx.Node = self._nodes[tensor]
        return node

    def _note(self, node: fx.Node, result: Any, changes: bool) -> None:
        """That a node gives a result: a tensor, or several."""
        if isinstance(result, Tensor):
            self._nodes[result] = node
            node.meta["kind"] = Kind.of(result)
            if changes:
                self._changing.add(node)
        elif isinstance(result, (list, tuple)):
            for place, item in enumerate(result):
                if isinstance(item, Tensor):
                    self._note(self._graph.call_function(operator.getitem, (node, place)), item, changes)
