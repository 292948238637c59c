"""Steps of chains of millions of coordinates: the gradient whole, and what follows it block by block.

Beside the state and the gradient, nothing of their size is in memory then: noise is drawn for a block, which moves
while it is in the processor's cache, and the state is written in place. The numbers are those of noise that is drawn
whole.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pyro_scale import tree
from pyro_scale.capture import Mapped, at_chain, fastest
from pyro_scale.derivative import grad_and_value
from pyro_scale.inlined import compiled_function
from pyro_scale.inputs import GROUP, Inputs
from pyro_scale.types import Batch, BoundKernel, Info, LogPosterior, Noise, Position, Settings

BLOCK = 2**17
"""So many coordinates move at a time: few enough for the cache, and enough for several threads."""

Part = dict[str, slice]


class Blockwise:
    """A step of all chains, one after another; it writes to their state, and draws its noise itself.

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
        self.parts = list(parts({name: shape.numel() for name, shape in inputs.shapes.items()}, BLOCK))

    def __call__(self, state: Any, batch: Batch, noise: Noise, settings: Settings) -> tuple[Any, Info]:
        infos = []
        for chain in range(self.inputs.num_chains):
            one, rows = at_chain(chain, self.mapped, (state, batch))
            infos.append(self._one(one, rows, settings))
        return state, Info(*map(torch.stack, zip(*infos, strict=True)))

    def compiled(self, state: Any, batch: Batch) -> Callable[..., Any]:
        """The gradient as native code, of batches as this one; `NativeError` where that cannot be."""
        assert self.step.recorded is not None
        one, rows = at_chain(0, self.mapped, (state, batch))
        return compiled_function(self.step.recorded, one.position, rows)

    def _one(self, state: Any, batch: Batch, settings: Settings) -> Info:
        gradient, log_posterior = self.gradient(state.position, batch)
        moves = bool(torch.isfinite(log_posterior))
        flat = pytree.tree_map(lambda leaf: leaf.view(-1), state)
        slopes = tree.map(lambda leaf: leaf.reshape(-1), gradient)
        clamped = torch.zeros((), dtype=torch.long)
        for part in self.parts:
            noise = self._noise(part)
            if not moves:  # the other chains' noise is what it would be
                continue
            here = type(state)(*(_at(field, part) for field in flat))
            after, number = self.move(here, _at(slopes, part), noise, settings)
            clamped += number
            for old, new in zip(pytree.tree_leaves(here), pytree.tree_leaves(after), strict=True):
                old.copy_(new)
        return Info(log_posterior, clamped)

    def _noise(self, part: Part) -> Noise:
        sizes = [where.stop - where.start for where in part.values()]
        return dict(zip(part, self.inputs.normals(sum(sizes)).split(sizes), strict=True))


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
