"""Simplifying a recorded graph: what is the same in every call is computed once, and what does nothing is dropped."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from pyro_scale.kinds import Kind

aten: Any = torch.ops.aten

FILLED = {aten.ones_like.default: 1, aten.zeros_like.default: 0}
RESHAPED = {
    aten.view.default,
    aten._unsafe_view.default,
    aten.expand.default,
    aten.reshape.default,
    aten.clone.default,
    aten.lift_fresh_copy.default,
}
NEUTRAL = {aten.add.Tensor: 0, aten.sub.Tensor: 0, aten.mul.Tensor: 1, aten.div.Tensor: 1, aten.pow.Tensor_Scalar: 1}
ARITHMETIC = {aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor}
COMMUTATIVE = {aten.add.Tensor, aten.mul.Tensor}
MOST_COMPARED = 1000
"""Larger constants are not looked at for being 0 or 1."""


def simplify(module: fx.GraphModule, known: Mapping[int, Tensor]) -> None:
    """Rewrites a graph of tensor operations in place.

    A graph with operations that write to their arguments is left alone: an order of evaluation matters there.

    Args:
        module: as `traced` returns it.
        known: position of an input -> its value, for inputs that are the same in every call.
    """
    nodes = list(module.graph.nodes)
    calls = [node for node in nodes if node.op == "call_function"]
    if any(node.target._schema.is_mutable for node in calls if hasattr(node.target, "_schema")):
        return
    inputs = [node for node in nodes if node.op == "placeholder"]
    values: dict[fx.Node, Any] = {node: getattr(module, node.target) for node in nodes if node.op == "get_attr"}
    values |= {inputs[position]: value for position, value in known.items()}
    for node in calls:
        same = _unchanged(node, values)
        if same is not None:
            node.replace_all_uses_with(same)
        elif (value := _constant(node, values)) is not None:
            values[node] = values[_replaced(module, node, value)] = value
    module.graph.eliminate_dead_code()
    _to_numbers(module)
    module.graph.eliminate_dead_code()
    module.recompile()
    used = {node.target for node in module.graph.nodes if node.op == "get_attr"}
    for name in [name for name, _ in module.named_buffers() if name not in used]:
        delattr(module, name)


def _to_numbers(module: fx.GraphModule) -> None:
    """Holds large constants whose entries are all equal as one number: a prior may have several for every weight."""
    for node in [node for node in module.graph.nodes if node.op == "get_attr"]:
        value = getattr(module, node.target)
        if not isinstance(value, Tensor) or value.numel() <= MOST_COMPARED:
            continue
        first = value[(0,) * value.ndim].clone()
        if any(value.stride()) and not bool((value == first).all()):
            continue
        name = f"{node.target}_number"
        module.register_buffer(name, first, persistent=False)
        with module.graph.inserting_before(node):
            number = module.graph.get_attr(name)
            kinds: dict[str, Any] = {"dtype": value.dtype, "device": value.device}
            filled = module.graph.call_function(aten.full.default, (list(value.shape), first.item()), kinds)
        number.meta, filled.meta = {"kind": Kind.of(first)}, dict(node.meta)
        for user in list(node.users):
            if user.target in ARITHMETIC and any(
                _alike(other, user) for other in user.all_input_nodes if other != node
            ):
                user.replace_input_with(node, number)
        node.replace_all_uses_with(filled)


def undecided_shape(module: fx.GraphModule) -> str | None:
    """The first operation whose result's shape depends on values and not on shapes alone, if there is one."""
    for node in module.graph.nodes:
        if torch.Tag.dynamic_output_shape not in getattr(node.target, "tags", ()):
            continue
        indices = [argument.meta.get("kind") for argument in node.all_input_nodes[1:]]
        masks = [index for index in indices if index is not None and index.dtype in (torch.bool, torch.uint8)]
        if node.target is not aten.index.Tensor or masks:
            return str(node.target)
    return None


def _constant(node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
    """The node's value if no unknown input enters it, otherwise None."""
    like: Kind | None = node.meta.get("kind")
    if node.target in FILLED and like is not None and like.strides is not None:
        # only the shape of its argument enters, which `undecided_shape` keeps from changing; a large one is one number
        # from the first, and not only once `_to_numbers` has seen it
        large = math.prod(like.shape) > MOST_COMPARED
        filled = torch.full(() if large else like.shape, FILLED[node.target], dtype=like.dtype, device=like.device)
        return filled.expand(like.shape)
    random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    if random or not all(argument in values for argument in node.all_input_nodes):
        return None
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda argument: values[argument])
    return node.target(*args, **kwargs)  # type: ignore[operator]


def _unchanged(node: fx.Node, values: Mapping[fx.Node, Any]) -> fx.Node | None:
    """The argument that the node returns as it is, if it does."""
    candidates = node.all_input_nodes
    if node.target is aten.cat.default:
        return candidates[0] if len(node.args[0]) == 1 else None  # type: ignore[arg-type]
    for source in candidates:
        if _alike(source, node) and (_reshaped(node) or _neutral(node, source, values)):
            return source
    return None


def _reshaped(node: fx.Node) -> bool:
    """Whether an operation that keeps shape and type keeps the values too."""
    if node.target is aten.permute.default:
        return list(node.args[1]) == list(range(len(node.meta["kind"].shape)))  # type: ignore[arg-type]
    if node.target is aten.sum.default:
        return bool(node.meta["kind"].shape == ())
    return node.target in RESHAPED


def _neutral(node: fx.Node, source: fx.Node, values: Mapping[fx.Node, Any]) -> bool:
    """Whether everything but `source` in a sum is 0, in a product or power 1."""
    if node.target not in NEUTRAL or len(node.args) != 2 or node.kwargs:
        return False
    first, second = node.args
    if first is not source and node.target not in COMMUTATIVE:
        return False
    other = second if first is source else first
    value = values.get(other) if isinstance(other, fx.Node) else other
    if isinstance(value, Tensor):
        return value.numel() <= MOST_COMPARED and bool((value == NEUTRAL[node.target]).all())
    return isinstance(value, (int, float)) and value == NEUTRAL[node.target]


def _alike(source: fx.Node, node: fx.Node) -> bool:
    return "kind" in source.meta and source.meta["kind"] == node.meta.get("kind")


def _replaced(module: fx.GraphModule, node: fx.Node, value: Any) -> fx.Node:
    """The node that stands for the value from here on."""
    if not isinstance(value, Tensor):  # the list that a split returns; its items are replaced
        return node
    name = f"_constant_{node.name}"
    module.register_buffer(name, value.detach(), persistent=False)
    with module.graph.inserting_before(node):
        replacement = module.graph.get_attr(name)
    replacement.meta = dict(node.meta)
    node.replace_all_uses_with(replacement)
    return replacement
