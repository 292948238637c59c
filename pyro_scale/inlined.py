"""A recorded graph as part of a function to compile, or as the whole of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from pyro_scale.capture import Recorded
from pyro_scale.native import compile_native

aten: Any = torch.ops.aten

FEW_NUMBERS = 16
"""Constants of at most so many may be summaries of the data."""


class Inlined:
    """A recorded graph, as part of a function to compile.

    Args:
        recorded: the function.
        of_data: whether its constants may come from the data, so that small ones are not written into the code.

    Attributes:
        constants: those of its constants that must be handed over; others are written into the code.
    """

    def __init__(self, recorded: Recorded, of_data: bool) -> None:
        self.graph = recorded.graph
        buffers = dict(self.graph.named_buffers())
        self.numbers = {
            name: None if of_data and value.numel() <= FEW_NUMBERS else _number(value)
            for name, value in buffers.items()
        }
        self.constants = {name: value for name, value in buffers.items() if self.numbers[name] is None}
        # with the shapes of what it takes, all that tells it from others; None if that cannot be told
        held = [(name, tuple(value.shape), str(value.dtype), self.numbers[name]) for name, value in buffers.items()]
        operations = recorded.described()
        self.described = None if operations is None else (operations, held)

    def __call__(self, constants: Mapping[str, Tensor], tensors: Sequence[Tensor]) -> list[Tensor]:
        """What the graph does."""
        result: list[Tensor] = _Interpreter(self.graph, constants, self.numbers).run(*tensors)
        return result


def compiled_function(recorded: Recorded, *example: Any, in_place: int = 0) -> Callable[..., Any]:
    """A recorded function as native code; it gives NaN where the recorded one raises, because a decomposition failed.

    Args:
        recorded: the function.
        example: arguments of a first call; those of every call have the same shapes, strides and types.
        in_place: so many tensors, the first of the arguments, are written over by the first of the results.

    Raises:
        NativeError: as `compile_native`.
    """
    inlined = Inlined(recorded, of_data=True)
    constants = list(inlined.constants.values())
    tensors = recorded.tensors(example)

    def flat(*given: Tensor) -> list[Tensor]:
        found = inlined(dict(zip(inlined.constants, given[len(tensors) :], strict=True)), given[: len(tensors)])
        for old, new in zip(given[:in_place], found[:in_place], strict=True):
            old.copy_(new)
        return found[in_place:]

    described = inlined.described and (inlined.described, in_place)
    compiled = compile_native(flat, [*tensors, *constants], described=described)

    def call(*arguments: Any) -> Any:
        given = recorded.tensors(arguments)
        return recorded.result([*given[:in_place], *compiled([*given, *constants])])

    return call


class _Interpreter(fx.Interpreter):
    def __init__(self, graph: fx.GraphModule, constants: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        super().__init__(graph, garbage_collect_values=False)
        self.constants = constants
        self.numbers = numbers

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target in self.constants:
            return self.constants[target]
        value = super().get_attr(target, args, kwargs)
        if not isinstance(value, Tensor):
            return value
        return torch.full(value.shape, self.numbers[target], dtype=value.dtype, device=value.device)

    def run_node(self, node: fx.Node) -> Any:
        if node.target is aten._linalg_check_errors.default:
            self._failures_to_nan(node.all_input_nodes[0])
            return None
        return super().run_node(node)

    def _failures_to_nan(self, info: fx.Node) -> None:
        """Instead of an error that stops a loop, NaN in every matrix that a decomposition failed for."""
        (source,) = info.all_input_nodes
        for node in source.users:
            value = self.env.get(node)
            if isinstance(value, Tensor) and value.is_floating_point():
                failed = self.env[info] != 0
                failed = failed.reshape(*failed.shape, *(1,) * (value.ndim - failed.ndim))
                self.env[node] = torch.where(failed, torch.nan, value)


def _number(value: Tensor) -> Any:
    """What all entries of a constant are, if they are equal."""
    if value.numel() == 0:
        return None
    first = value.flatten()[0]
    return first.item() if bool((value == first).all()) else None
