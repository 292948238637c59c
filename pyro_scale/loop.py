"""Steps of a chunk as one loop of native code, which gathers its minibatches and keeps draws by itself.

A loop turns over the positions to be kept, and within it one over the steps that lead to each: nothing else is copied.
States are written in place. A chain whose log posterior is not finite stands still from there on, to be looked at.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pyro_scale import tree
from pyro_scale.capture import Step
from pyro_scale.collected import Snapshot, Taken
from pyro_scale.inlined import Inlined
from pyro_scale.inputs import Chunk
from pyro_scale.local import Table
from pyro_scale.native import compile_native, repeated
from pyro_scale.types import Anchor, Batch, Info, Settings

KEPT_NUMBERS = 2**22
"""A call keeps positions of at most so many numbers, unless one alone has more."""


class Results(NamedTuple):
    """What the loop writes, as in `Taken`; `kept` has room for `most_kept` snapshots, or is `()` for a single one."""

    log_posterior: Tensor
    clamped: Tensor
    kept: Snapshot | tuple[()]


class Arguments(NamedTuple):
    """What the loop is called with: a tree of tensors, of all chains or of one.

    Attributes:
        counters: the first step, how many segments, and before which step each ends.
        state: of the kernel; written to.
        rows: data argument -> all rows, of which a step gathers its own; or those of every step.
        indices: rows of each step, `(num_steps, num_chains, n)`; without gathering `(n,)`.
        noise, settings: of each step, `(num_steps, ...)`.
        moving: whether a chain moves, `(num_chains,)`.
        results: where they go.
        constants, anchor: of the recorded step, and of the batches of every chain.
    """

    counters: tuple[Tensor, Tensor, Tensor]
    state: Any
    rows: dict[str, Tensor]
    indices: Any
    noise: Any
    settings: Tensor
    moving: Tensor
    results: Results
    constants: dict[str, Tensor]
    anchor: Anchor | tuple[()]


class Loop:
    """The compiled loop of a run; every call takes arguments of the shapes of the first.

    Args:
        step: a recorded step.
        table: which part of the state a batch moves.
        state: of all chains.
        chunk: inputs of a first chunk.
        batch: of a first step.
        columns: data argument -> all rows, of which each step gathers its batch; None where batches are handed over.
        single: whether each call takes one step, of a batch of its own.

    Raises:
        NativeError: it cannot be compiled.
    """

    def __init__(
        self,
        step: Step,
        table: Table,
        state: Any,
        chunk: Chunk,
        batch: Batch,
        columns: dict[str, Tensor] | None,
        single: bool = False,
    ) -> None:
        assert step.recorded is not None
        self.recorded = step.recorded
        self.table = table
        self.columns = columns
        self.scale = batch.scale
        self.batch_size = batch.indices.shape[-1]
        self.apart = step.apart
        # what is folded of all rows is the data's; the code is to serve other data of the same sizes
        self.inlined = Inlined(self.recorded, of_data=columns is None)
        self.single = single
        self.settings: tuple[Settings, Tensor] | None = None
        self.num_chains = len(next(iter(state.position.values())))
        self.most_kept = 1 if single else max(1, min(chunk.length, KEPT_NUMBERS // tree.size(state.position)))
        arguments = self._arguments(state, chunk, batch, 0, [1])
        leaves, self.structure = pytree.tree_flatten(self._parts(arguments)[0])
        kind = (str(self.structure), table.axes, batch.scale, self.most_kept, columns is None, single, self.apart)
        described = self.inlined.described and (self.inlined.described, kind)
        self.compiled = compile_native(self._native, leaves, described=described)

    def take(self, state: Any, chunk: Chunk, batch: Batch, first: int, last: int, kept: Sequence[int]) -> Taken:
        """Takes steps of a chunk, writing to the state.

        Args:
            state: of all chains.
            chunk: inputs of the steps.
            batch: that of every step, unless each gathers its own.
            first: number of the first step in the chunk.
            last: number of the step to stop before, at the latest.
            kept: numbers of the steps before which positions are to be kept, in order.

        Returns:
            What the steps leave; positions in the kernel's coordinates.
        """
        ends = list(kept[bisect_right(kept, first) : bisect_right(kept, last)])[: self.most_kept]
        segments = ends if len(ends) == self.most_kept or last in ends else [*ends, last]
        arguments = self._arguments(state, chunk, batch, first, segments)
        for part in self._parts(arguments):
            self.compiled(pytree.tree_leaves(part))
        taken = slice(first, segments[-1])
        results = arguments.results
        snapshots = self._snapshots(state, results.kept, len(ends))
        return Taken(results.log_posterior[taken], results.clamped[taken], [end - first for end in ends], snapshots)

    def _snapshots(self, state: Any, kept: Snapshot | tuple[()], number: int) -> Snapshot | None:
        if number == 0:
            return None
        if not isinstance(kept, Snapshot):
            return Snapshot(*pytree.tree_map(lambda leaf: leaf.unsqueeze(0).clone(), Snapshot.of(state)))
        # where there are fewer, the rest need not stay in memory
        return (
            kept if number == self.most_kept else Snapshot(*pytree.tree_map(lambda leaf: leaf[:number].clone(), kept))
        )

    def _arguments(self, state: Any, chunk: Chunk, batch: Batch, first: int, ends: Sequence[int]) -> Arguments:
        like = next(iter(state.position.values()))
        stops = torch.zeros(self.most_kept, dtype=torch.long)
        stops[: len(ends)] = torch.tensor(ends)
        steps = (chunk.length, self.num_chains)
        room: Snapshot | tuple[()] = ()
        if self.most_kept > 1:
            room = pytree.tree_map(lambda leaf: leaf.new_empty((self.most_kept, *leaf.shape)), Snapshot.of(state))
        rows = batch.data if self.columns is None else self.columns
        return Arguments(
            counters=(torch.tensor(first), torch.tensor(len(ends)), stops),
            state=state,
            rows=rows,
            indices=batch.indices if self.columns is None else chunk.indices,
            noise=chunk.noise,
            settings=self._columns(chunk),
            moving=like.new_ones(self.num_chains, dtype=torch.bool),
            results=Results(like.new_empty(steps), like.new_empty(steps, dtype=torch.long), room),
            constants=self.inlined.constants,
            anchor=batch.anchor,
        )

    def _columns(self, chunk: Chunk) -> Tensor:
        """Settings of all steps, `(num_steps, 3)`, repeated where the run ends before the chunk; made once a chunk."""
        if self.settings is None or self.settings[0] is not chunk.settings:
            joined = torch.stack(tuple(chunk.settings), 1)
            last = joined[-1:].expand(chunk.length - len(joined), -1)
            self.settings = chunk.settings, torch.cat([joined, last])
        return self.settings[1]

    def _parts(self, arguments: Arguments) -> list[Arguments]:
        """The arguments of all chains, or of one after another, where the step is of one."""
        return [self._chain(arguments, i) for i in range(self.num_chains)] if self.apart else [arguments]

    def _chain(self, arguments: Arguments, chain: int) -> Arguments:
        def narrow(axis: int) -> Any:
            return lambda leaf: leaf.narrow(axis, chain, 1)

        return arguments._replace(
            state=pytree.tree_map(narrow(0), arguments.state),
            indices=arguments.indices if self.columns is None else narrow(1)(arguments.indices),
            noise=pytree.tree_map(narrow(1), arguments.noise),
            moving=narrow(0)(arguments.moving),
            results=pytree.tree_map(narrow(1), arguments.results),
            anchor=pytree.tree_map(narrow(0), arguments.anchor),
        )

    def _native(self, *leaves: Tensor) -> list[Tensor]:
        """What is compiled."""
        first, num_segments, ends = pytree.tree_unflatten(leaves, self.structure).counters

        def within_run(segment: Tensor, step: Tensor, num_segments: Tensor, *rest: Tensor) -> Tensor:
            return segment < num_segments

        def advance(segment: Tensor, step: Tensor, num_segments: Tensor, ends: Tensor, *leaves: Tensor) -> Any:
            arguments = pytree.tree_unflatten([step, num_segments, ends, *leaves], self.structure)
            moved = repeated(within_segment, move, [step], [_at(ends, segment), *leaves])
            if arguments.results.kept:
                reached = Snapshot.of(arguments.state)
                for room, leaf in zip(*map(pytree.tree_leaves, (arguments.results.kept, reached)), strict=True):
                    room.index_put_((segment,), leaf)
            return segment + 1, *moved

        def within_segment(step: Tensor, end: Tensor, *rest: Tensor) -> Tensor:
            return step < end

        def move(step: Tensor, end: Tensor, *leaves: Tensor) -> Any:
            self._move(step, pytree.tree_unflatten([step, end, end, *leaves], self.structure))
            return (step + 1,)

        start = torch.zeros((), dtype=torch.long)
        return list(repeated(within_run, advance, [start, first], [num_segments, ends, *leaves[3:]]))

    def _move(self, step: Tensor, given: Arguments) -> None:
        """One step: writes state and results."""
        rows = None if self.columns is None else _at(given.indices, step)
        gathered = given.rows if rows is None else {name: value[rows] for name, value in given.rows.items()}
        batch = Batch(gathered, given.indices if rows is None else rows, self.scale, given.anchor)
        before = self.table.rows(given.state, rows)
        noise = pytree.tree_map(lambda leaf: _at(leaf, step), given.noise)
        settings = Settings(*_at(given.settings, step).unbind())
        after, info = self._stepped(given.constants, before, batch, noise, settings)
        moving = given.moving & torch.isfinite(info.log_posterior)

        def where_moving(new: Tensor, old: Tensor) -> Tensor:
            return torch.where(moving.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

        after = self.table.write(given.state, pytree.tree_map(where_moving, after, before), rows)
        for old, new in zip(pytree.tree_leaves(given.state), pytree.tree_leaves(after), strict=True):
            if new is not old:
                old.copy_(new)
        given.moving.copy_(moving)
        given.results.log_posterior.index_put_((step,), info.log_posterior)
        given.results.clamped.index_put_((step,), info.clamped)

    def _stepped(
        self, constants: dict[str, Tensor], state: Any, batch: Batch, noise: Any, settings: Settings
    ) -> tuple[Any, Info]:
        def one(tree: Any) -> Any:
            return pytree.tree_map(lambda leaf: leaf.squeeze(0) if isinstance(leaf, Tensor) else leaf, tree)

        if self.apart:
            state, noise = one(state), one(noise)
            batch = one(batch) if self.columns is not None else batch._replace(anchor=one(batch.anchor))
        tensors = self.recorded.tensors((state, batch, noise, settings))
        result = self.recorded.result(self.inlined(constants, tensors))
        if self.apart:
            result = pytree.tree_map(lambda leaf: leaf.unsqueeze(0), result)
        after, info = result
        return after, info


def _at(tensor: Tensor, index: Tensor) -> Tensor:
    """The entry at a 0-d index that is known in the loop only; indexing by brackets would ask for its value."""
    result: Tensor = torch.ops.aten.index.Tensor(tensor, [index])
    return result
