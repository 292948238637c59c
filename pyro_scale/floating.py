"""Floating types written out in a recorded graph, wherever torch's default type decided them.

A model runs under the default type of its data, its recording under whatever default the caller has: `zeros(3)`, or
the logarithm of an integer, would have another type there.
"""

from __future__ import annotations

import torch
from torch import fx

from pyro_scale.kinds import Kind


def write_out_types(module: fx.GraphModule) -> None:
    """Gives every operation that makes floating numbers out of none the type it had while it was recorded."""
    for node in list(module.graph.nodes):
        made: Kind | None = node.meta.get("kind")
        if node.op != "call_function" or made is None or not made.is_floating or not hasattr(node.target, "_schema"):
            continue
        if any("kind" in source.meta and source.meta["kind"].is_floating for source in node.all_input_nodes):
            continue
        if any(argument.name == "dtype" for argument in node.target._schema.arguments):
            node.update_kwarg("dtype", made.dtype)
            continue
        with module.graph.inserting_before(node):
            for source in node.all_input_nodes:
                node.replace_input_with(source, _converted(module.graph, source, made.dtype))
    module.recompile()


def _converted(graph: fx.Graph, source: fx.Node, dtype: torch.dtype) -> fx.Node:
    return graph.call_function(torch.ops.aten._to_copy.default, (source,), {"dtype": dtype})
