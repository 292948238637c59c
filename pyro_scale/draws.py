"""Functions of every draw, vectorised in blocks of bounded memory."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils import _pytree as pytree

from pyro_scale import tree
from pyro_scale.checks import check_count
from pyro_scale.compile import CompiledModel
from pyro_scale.types import Position
from pyro_scale.values import evenly_spaced

logger = logging.getLogger("pyro_scale")

BLOCK_NUMBERS = 2**24
LARGE = ROW_NUMBERS = 2**22
"""At most so many numbers of positions are evaluated side by side, and so many draws times rows of the data; chains
of more numbers go one after another."""


def constrain(compiled: CompiledModel, positions: list[Position], keep: tuple[str, ...]) -> dict[str, Tensor]:
    """Positions `(n, num_chains, *site)`, one block after another, as values `(num_chains, sum of n, *site)`."""
    if not positions:
        return {name: torch.empty(0) for name in keep}
    together = by_chain(positions)
    num_chains, num_draws = next(iter(together.values())).shape[:2]
    rows = tree.map(lambda leaf: leaf.flatten(0, 1), together)

    def kept(position: Position) -> dict[str, Tensor]:
        return compiled.constrain(position, keep)

    values = over_draws(kept, rows, num_rows=compiled.rows_run(keep))
    return tree.map(lambda leaf: leaf.unflatten(0, (num_chains, num_draws)), values)


def by_chain(blocks: list[Position]) -> dict[str, Tensor]:
    """Blocks `(n, num_chains, ...)` one after another, as `(num_chains, sum of n, ...)`."""

    def joined(parts: list[Tensor]) -> Tensor:
        return parts[0].contiguous() if len(parts) == 1 else torch.cat(parts, 1)  # large ones are not to be copied

    return {name: joined([block[name].transpose(0, 1) for block in blocks]) for name in blocks[0]}


def over_draws(
    function: Callable[[Position], Any], draws: Position, randomness: str = "error", *, num_rows: int = 1
) -> Any:
    """`function` of every draw along the leading axis: vectorised in blocks of bounded memory, or one by one.

    `num_rows` are those that the function runs the model on, whose memory grows with them.
    """
    numbers = tree.size(draws) // len(next(iter(draws.values())))
    block = max(1, min(BLOCK_NUMBERS // max(1, numbers), ROW_NUMBERS // num_rows))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")  # still faster than one by one
        warnings.filterwarnings("ignore", message="An output with one or more elements was resized")  # by vmap itself
        try:
            return _in_blocks(vmap(function, randomness=randomness), draws, block)
        except RuntimeError as error:
            logger.info("Draws are handled one by one: %s", str(error).splitlines()[0])
        num_draws = len(next(iter(draws.values())))
        results = [function(tree.map(lambda leaf, i=i: leaf[i], draws)) for i in range(num_draws)]
        return pytree.tree_map(lambda *leaves: torch.stack(leaves), *results)


def over_chains(together: Callable[..., Any], alone: Callable[..., Any], *arguments: Any) -> Any:
    """A function of every chain: `together` vectorised, or where the model cannot be, `alone` of one after another.

    Args:
        together: function of the arguments of one chain.
        alone: the same, which may also handle what the model raises at some chain.
        arguments: trees of tensors with a leading chain axis.
    """
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")  # still faster than one by one
        leaves = pytree.tree_leaves(arguments)
        num_chains = len(leaves[0])
        with suppress(Exception):  # whatever vmap cannot do; what is the model's own fault is raised below
            if sum(leaf.numel() for leaf in leaves) <= num_chains * LARGE:
                return vmap(together)(*arguments)
        results = [alone(*pytree.tree_map(lambda leaf, i=i: leaf[i], arguments)) for i in range(num_chains)]
        if num_chains == 1:  # a view: the chain may be large
            return pytree.tree_map(lambda leaf: leaf.unsqueeze(0), results[0])
        return pytree.tree_map(lambda *leaves: torch.stack(leaves), *results)


def _in_blocks(function: Callable[[Position], Any], draws: Position, block: int) -> Any:
    """As `vmap(chunk_size=block)`, which holds all results twice when it joins them."""
    num_draws = len(next(iter(draws.values())))
    results: Any = None
    for start in range(0, num_draws, block):
        part = function(tree.map(lambda leaf, start=start: leaf[start : start + block], draws))
        if block >= num_draws:
            return part
        if results is None:
            results = pytree.tree_map(lambda leaf: leaf.new_empty((num_draws, *leaf.shape[1:])), part)
        pytree.tree_map(lambda whole, leaf, start=start: whole[start : start + block].copy_(leaf), results, part)
    return results


def thinned(draws: dict[str, Tensor], num_samples: int | None) -> dict[str, Tensor]:
    """That many of the draws of each chain, evenly spaced; None for all."""
    if num_samples is None or not draws:
        return draws
    available = next(iter(draws.values())).shape[1]
    num_samples = check_count("num_samples", num_samples, 1, available, ", the number of draws a chain")
    chosen = torch.from_numpy(evenly_spaced(available, num_samples))
    return {name: value[:, chosen.to(value.device)] for name, value in draws.items()}


def at_random(draws: dict[str, Tensor], n: int, seed: int) -> dict[str, Tensor]:
    """`n` of the draws of all chains, `(n, *site)`: without repetition while there are enough, otherwise with."""
    num_chains, num_samples = next(iter(draws.values())).shape[:2]
    total = num_chains * num_samples
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(total, (n,), generator=generator, device="cpu")
    if n <= total:
        chosen = torch.randperm(total, generator=generator, device="cpu")[:n]
    return {name: value.flatten(0, 1)[chosen.to(value.device)] for name, value in draws.items()}
