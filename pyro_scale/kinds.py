"""What is known of a tensor without its numbers."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Kind(NamedTuple):
    """All that is said of the result of an operation in a recorded graph, where it would be large to keep.

    Every node that gives one tensor has it as its `meta["kind"]`.
    """

    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tensor: Tensor) -> Kind:
        """That of a tensor; a sparse one has no strides."""
        strides = tensor.stride() if tensor.layout is torch.strided else None
        return cls(tuple(tensor.shape), strides, tensor.dtype, tensor.device)

    @property
    def is_floating(self) -> bool:
        """Whether its numbers are floating ones."""
        return self.dtype.is_floating_point
