"""Functions of every draw, vectorised in blocks of bounded memory."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils import _pytree as pytree

from pyro_scale import tree
from pyro_scale.compile import CompiledModel
from pyro_scale.types import Position

logger = logging.getLogger("pyro_scale")

BLOCK_NUMBERS = 2**24


def constrain(compiled: CompiledModel, positions: list[Position], keep: tuple[str, ...]) -> dict[str, Tensor]:
    """Positions of all chains, one after another, as constrained values `(num_chains, len(positions), *site)`."""
    if not positions:
        return {name: torch.empty(0) for name in keep}
    stacked = {name: torch.stack([position[name] for position in positions], 1) for name in positions[0]}
    num_chains, num_draws = next(iter(stacked.values())).shape[:2]
    rows = tree.map(lambda leaf: leaf.flatten(0, 1), stacked)

    def kept(position: Position) -> dict[str, Tensor]:
        values = compiled.constrain(position)
        return {name: values[name] for name in keep}

    values = over_draws(kept, rows)
    return tree.map(lambda leaf: leaf.unflatten(0, (num_chains, num_draws)), values)


def over_draws(function: Callable[[Position], Any], draws: Position, randomness: str = "error") -> Any:
    """`function` of every draw along the leading axis: vectorised in blocks of bounded memory, or one by one."""
    block = max(1, BLOCK_NUMBERS // max(1, tree.size(draws) // len(next(iter(draws.values())))))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")  # still faster than one by one
        try:
            return vmap(function, randomness=randomness, chunk_size=block)(draws)
        except RuntimeError as error:
            logger.info("Draws are handled one by one: %s", str(error).splitlines()[0])
        num_draws = len(next(iter(draws.values())))
        results = [function(tree.map(lambda leaf, i=i: leaf[i], draws)) for i in range(num_draws)]
        return pytree.tree_map(lambda *leaves: torch.stack(leaves), *results)
