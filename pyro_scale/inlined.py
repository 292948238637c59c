"""A recorded graph as part of a function to compile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_scale.capture import Recorded

aten: Any = torch.ops.aten


class Inlined:
    """A recorded graph, as part of a function to compile.

    Attributes:
        constants: those of its constants that must be handed over; others are written into the code.
    """

    def __init__(self, recorded: Recorded) -> None:
        self.graph = recorded.graph
        buffers = dict(self.graph.named_buffers())
        self.numbers = {name: _number(value) for name, value in buffers.items()}
        self.constants = {name: value for name, value in buffers.items() if self.numbers[name] is None}

    def __call__(self, constants: Mapping[str, Tensor], tensors: Sequence[Tensor]) -> list[Tensor]:
        """What the graph does."""
        result: list[Tensor] = _Interpreter(self.graph, constants, self.numbers).run(*tensors)
        return result


def _number(value: Tensor) -> Any:
    """What all entries of a constant are, if they are equal."""
    if value.numel() == 0:
        return None
    first = value.flatten()[0]
    return first.item() if bool((value == first).all()) else None
