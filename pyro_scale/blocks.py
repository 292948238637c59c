"""Steps of chains of millions of coordinates: the gradient whole, and what follows it block by block.

Beside the state and the gradient, nothing of their size is in memory then: a block moves while it is in the
processor's cache, the state is written in place, and a second thread draws the noise of the next blocks, a quarter of
a chain's at most. The numbers are those of noise that is drawn whole.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pyro_scale import tree
from pyro_scale.capture import Mapped, at_chain, fastest, record
from pyro_scale.derivative import grad_and_value
from pyro_scale.inlined import compiled_function
from pyro_scale.inputs import GROUP, Inputs
from pyro_scale.native import NativeError, agree
from pyro_scale.types import Batch, BoundKernel, Info, LogPosterior, Noise, Position, Settings

BLOCK = 2**17
"""So many coordinates move at a time: few enough for the cache, and enough for several threads."""

SITE = "site"

Part = dict[str, slice]


class Blockwise:
    """A step of all chains, one after another; it writes to their state, and takes its noise in pieces.

    A chain stands still whose log posterior is not finite.

    Args:
        target: that the kernel is bound to.
        bound: a kernel that can `move`.
        inputs: of the run.
        mapped, fixed: of position and batch, as `fastest` takes them.
        position: of all chains.
        batch: of a first step.

    Attributes:
        step: how the gradient of one chain is recorded.
        gradient: of one chain; native code may take its place.
        move_whole: moves a block of one site, and writes to its state, if that is compiled.
    """

    def __init__(
        self,
        target: LogPosterior,
        bound: BoundKernel,
        inputs: Inputs,
        mapped: Mapped,
        fixed: Collection[int],
        position: Position,
        batch: Batch,
    ) -> None:
        assert bound.move is not None
        self.move = bound.move
        self.inputs = inputs
        self.mapped = mapped
        function = grad_and_value(target)
        self.step = fastest(function, mapped, position, batch, fixed=fixed, apart=True)
        self.gradient = torch.no_grad()(self.step.recorded or function)
        self.move_whole: Callable[..., Any] | None = None
        self.parts = list(parts({name: shape.numel() for name, shape in inputs.shapes.items()}, BLOCK))
        self.sizes = [[where.stop - where.start for where in part.values()] for part in self.parts]
        self.noise = inputs.in_pieces([sum(sizes) for sizes in self.sizes])

    def __call__(self, state: Any, batch: Batch, noise: Noise, settings: Settings) -> tuple[Any, Info]:
        infos = []
        for chain in range(self.inputs.num_chains):
            one, rows = at_chain(chain, self.mapped, (state, batch))
            infos.append(self._one(one, rows, settings))
        return state, Info(*map(torch.stack, zip(*infos, strict=True)))

    def compile(self, state: Any, batch: Batch, settings: Settings) -> None:
        """Native code for the gradient, of batches as this one, and for blocks; `NativeError` where that cannot be."""
        assert self.step.recorded is not None
        one, rows = at_chain(0, self.mapped, (state, batch))
        gradient = compiled_function(self.step.recorded, one.position, rows)
        if [BLOCK] in self.sizes:
            self.move_whole = self._compiled_move(one, settings)
        self.gradient = gradient

    def _compiled_move(self, state: Any, settings: Settings) -> Callable[..., Any]:
        like = next(iter(state.position.values()))
        fields = [
            {SITE: torch.linspace(k, -1, BLOCK, dtype=like.dtype, device=like.device)} for k in range(len(state) + 2)
        ]
        block = type(state)(*fields[2:])
        given = block, fields[0], fields[1], settings
        recorded = record(self.move, *given)
        move = compiled_function(recorded, *given, in_place=len(block))
        expected = pytree.tree_leaves(self.move(*given))
        if not all(map(agree, pytree.tree_leaves(move(*given)), expected)):
            raise NativeError("A compiled block moves otherwise than the recorded one")
        return move

    def _one(self, state: Any, batch: Batch, settings: Settings) -> Info:
        gradient, log_posterior = self.gradient(state.position, batch)
        moves = bool(torch.isfinite(log_posterior))
        flat = pytree.tree_map(lambda leaf: leaf.view(-1), state)
        slopes = tree.map(lambda leaf: leaf.reshape(-1), gradient)
        clamped = torch.zeros((), dtype=torch.long)
        for part, sizes in zip(self.parts, self.sizes, strict=True):
            noise = self.noise.next().split(sizes)
            if moves:  # if not, the other chains' noise is what it would be
                here = type(state)(*(_at(field, part) for field in flat))
                clamped += self._moved(here, _at(slopes, part), dict(zip(part, noise, strict=True)), settings)
        return Info(log_posterior, clamped)

    def _moved(self, here: Any, slopes: Position, noise: Position, settings: Settings) -> Tensor:
        """Moves a block, in place; how much of its noise was clamped."""
        if self.move_whole is not None and [leaf.numel() for leaf in noise.values()] == [BLOCK]:
            block = (type(here)(*map(_alone, here)), _alone(slopes), _alone(noise))
            result: Tensor = self.move_whole(*block, settings)[1]
            return result
        after, clamped = self.move(here, slopes, noise, settings)
        for old, new in zip(pytree.tree_leaves(here), pytree.tree_leaves(after), strict=True):
            old.copy_(new)
        return clamped


def parts(sizes: Mapping[str, int], length: int) -> Iterator[Part]:
    """Consecutive coordinates of all sites, `length` at a time: site -> which of its own are among them.

    Normals that are drawn for one part after another are those of one piece: `length` is a multiple of `GROUP`, and no
    part is shorter.

    Example:
        >>> list(parts({"w": 40, "b": 1}, 32))
        [{'w': slice(0, 40, None), 'b': slice(0, 1, None)}]
        >>> list(parts({"w": 40, "b": 10}, 32))
        [{'w': slice(0, 32, None)}, {'w': slice(32, 40, None), 'b': slice(0, 10, None)}]
    """
    total = sum(sizes.values())
    edges = [*range(0, max(1, total - GROUP + 1), length), total]
    for first, last in pairwise(edges):
        part, start = {}, 0
        for name, size in sizes.items():
            here = slice(max(first - start, 0), min(last - start, size))
            if here.start < here.stop:
                part[name] = here
            start += size
        yield part


def _at(field: Mapping[str, Tensor], part: Part) -> dict[str, Tensor]:
    return {name: field[name][where] for name, where in part.items()}


def _alone(field: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A field of one site, whatever its name: the same code serves all of them."""
    (leaf,) = field.values()
    return {SITE: leaf}
