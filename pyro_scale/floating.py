"""Floating types written out in a recorded graph, wherever torch's default type decided them.

A model runs under the default type of its data, its recording under whatever default the caller has: `zeros(3)`, or
the logarithm of an integer, would have another type there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx


def write_out_types(module: fx.GraphModule) -> None:
    """Gives every operation that makes floating numbers out of none the type it had while it was recorded."""
    for node in list(module.graph.nodes):
        made = node.meta.get("val")
        if node.op != "call_function" or not _is_floating(made) or not hasattr(node.target, "_schema"):
            continue
        sources = {source: _value(module, source) for source in node.all_input_nodes}
        if any(_is_floating(value) for value in sources.values()):
            continue
        if any(argument.name == "dtype" for argument in node.target._schema.arguments):
            node.update_kwarg("dtype", made.dtype)
            continue
        with module.graph.inserting_before(node):
            for source in sources:
                node.replace_input_with(source, _converted(module.graph, source, made.dtype))
    module.recompile()


def _value(module: fx.GraphModule, node: fx.Node) -> Any:
    return getattr(module, str(node.target)) if node.op == "get_attr" else node.meta.get("val")


def _is_floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _converted(graph: fx.Graph, source: fx.Node, dtype: torch.dtype) -> fx.Node:
    node = graph.call_function(torch.ops.aten._to_copy.default, (source,), {"dtype": dtype})
    if isinstance(value := source.meta.get("val"), Tensor):
        node.meta["val"] = value.to(dtype)
    return node
