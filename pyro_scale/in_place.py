"""Results of a recorded graph that are written over an argument which nothing else needs.

That is for graphs that torch runs operation by operation: the log density of a million weights is five passes over
them, and memory of that size, which comes from the system and is cleared by it, costs as much as a pass. A compiler
joins the passes by itself, and is handed the graph without it.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import fx

aten: Any = torch.ops.aten

PRODUCTS = {aten.mm.default, aten.addmm.default, aten.bmm.default}
COMMUTATIVE = {aten.add.Tensor, aten.mul.Tensor}


def written_in_place(module: fx.GraphModule) -> fx.GraphModule:
    """A graph that gives what another gives, and writes to none of its inputs; it shares the constants.

    Args:
        module: as `traced` returns it.
    """
    result = fx.GraphModule(module, copy.deepcopy(module.graph))
    own: set[fx.Node] = set()  # in memory of their own
    for node in result.graph.nodes:
        if not _elementwise(node):
            if node.target in PRODUCTS:
                own.add(node)
            continue
        own.add(node)
        if node.target in COMMUTATIVE and not node.kwargs and _can_go(node.args[1], node, own):
            node.args = node.args[::-1]
        if _can_go(node.args[0], node, own) and (twin := _twin(node.target)) is not None:
            node.target = twin
    result.recompile()
    return result


def _elementwise(node: fx.Node) -> bool:
    """Whether each entry of the node's result is made of those at its place alone, and is stored anew."""
    if not isinstance(node.target, torch._ops.OpOverload) or not node.args:
        return False
    schema, tags = node.target._schema, node.target.tags
    plain = not schema.is_mutable and all(each.alias_info is None for each in schema.returns)
    return plain and torch.Tag.pointwise in tags and torch.Tag.nondeterministic_seeded not in tags


def _can_go(argument: Any, node: fx.Node, own: set[fx.Node]) -> bool:
    """Whether a node may write its result over an argument: nobody else sees it, and it is of the same kind."""
    if not isinstance(argument, fx.Node) or argument not in own or list(argument.users) != [node]:
        return False
    return "kind" in argument.meta and argument.meta["kind"] == node.meta.get("kind")


def _twin(operation: Any) -> Any:
    """The operation that writes to its first argument, if torch has it: `mul_` of `mul`."""
    packet = getattr(aten, f"{operation._schema.name.removeprefix('aten::')}_", None)
    twin = getattr(packet, operation._overloadname, None)
    if twin is None:
        return None
    one, other = ([(each.name, str(each.type)) for each in each._schema.arguments] for each in (operation, twin))
    return twin if one == other else None
