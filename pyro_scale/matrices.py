"""Which way warm-up goes: with matrices, with diagonals, or with blocks of rows that have values of their own."""

from __future__ import annotations

import torch

from pyro_scale.compile import CompiledModel
from pyro_scale.dense import Dense
from pyro_scale.diagonal import Diagonal
from pyro_scale.mode import DENSE_LIMIT
from pyro_scale.rowwise import Rowwise


def matrices_of(
    compiled: CompiledModel, sd: float, generator: torch.Generator, num_samples: int
) -> Dense | Diagonal | Rowwise:
    """What suits a model.

    Args:
        compiled: the model.
        sd: of the coordinates, where they are right.
        generator: of what is random.
        num_samples: draws of a chain.
    """
    if compiled.local and compiled.batch_size is not None:
        return Rowwise(compiled, sd, generator, num_samples)
    if sum(shape.numel() for shape in compiled.latent.values()) > DENSE_LIMIT:
        return Diagonal(compiled, sd, generator, num_samples)
    return Dense(compiled, sd, generator)
