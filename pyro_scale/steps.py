"""Steps of all chains: by the recorded function, one after another, or many in a native loop once that repays."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils import _pytree as pytree

from pyro_scale import tree
from pyro_scale.arriving import arriving_at
from pyro_scale.blocks import Blockwise
from pyro_scale.capture import Step, fastest, first_line
from pyro_scale.choice import Choice, JitCompile
from pyro_scale.collected import Snapshot, Taken
from pyro_scale.compile import CompiledModel
from pyro_scale.inputs import Chunk, Inputs
from pyro_scale.local import Table
from pyro_scale.loop import Loop
from pyro_scale.native import NativeError, agree
from pyro_scale.starts import LinAlgError
from pyro_scale.types import Anchor, Batch, BoundKernel, Kernel, Position

LARGE = 100_000
"""Chains of more coordinates run one after another: side by side, their gradients would all be in memory."""
FIRST_CALL = 64
CALL_SECONDS = 0.1
"""At most so many steps in the first call of a native loop; the next last about so long, which Ctrl-C waits for."""
TRIAL_STEPS = 3


class Steps:
    """The state of all chains, and what moves it.

    Args:
        compiled: the model.
        kernel: settings of the algorithm, for messages.
        table: which part of the state a batch moves.
        bound: the kernel bound to the table's target.
        start: position of every chain, in the kernel's coordinates.
        inputs: of the steps.
        seed: of a loader's order.
        jit_compile: whether steps run in native loops; "auto" once that repays.
        anchor: of the control variates of every chain, if the target has them.

    Attributes:
        chains: the kernel's state, with a leading chain axis.
        batch: of the last step.
    """

    def __init__(
        self,
        compiled: CompiledModel,
        kernel: Kernel,
        table: Table,
        bound: BoundKernel,
        start: Position,
        inputs: Inputs,
        seed: int,
        jit_compile: JitCompile,
        anchor: Anchor | tuple[()] = (),
    ) -> None:
        self.compiled = compiled
        self.anchor = anchor
        self.table = table
        one = tree.map(lambda leaf: leaf[0], start)
        num_chains = len(next(iter(start.values())))
        indices, noise, settings = inputs.example()
        self.arriving = arriving_at(compiled, seed, anchor)
        self.batch = compiled.batch(indices)._replace(anchor=anchor) if self.arriving is None else self.arriving.example
        self.example = self.batch  # of the length that is compiled for
        # chains share the rows of a loader, but have anchors of their own
        mapped = (True, (False, False, False, True) if indices is None else True, True, False)
        every_step_the_same = (1,) if indices is None and self.arriving is None else ()
        self.large = tree.size(one) > LARGE
        self.by_block = self.shared = inputs.by_block

        def recorded(batch: Batch, position: Position) -> Step:
            if self.by_block:
                blocks = Blockwise(table.target, bound, inputs, mapped[:2], every_step_the_same, position, batch)
                return blocks.step._replace(function=blocks)
            arguments = (table.rows(self.chains, indices), batch, noise, settings)
            apart = self.large or num_chains == 1
            return fastest(bound.update, mapped, *arguments, fixed=every_step_the_same, apart=apart)

        if self.by_block:  # while there are no momenta in memory
            self.recorded = recorded(self.batch, start)
        self.chains = vmap(bound.init)(start, inputs.noise(num_chains, shapes=bound.noise_shape(one)))
        if table.axes:
            table.check(kernel, self.chains, vmap(bound.init)(table.rows(start, indices), noise))
        if not self.by_block:
            self.recorded = recorded(self.batch, start)
        self.update = self.recorded.function
        if self.arriving is not None:
            self.arriving.expect(self.batch, self.update, lambda batch: recorded(batch, self.chains.position).function)
        self.loop: Loop | None = None
        self.choice = Choice(
            jit_compile, self.recorded.recorded, self.recorded.how, self.recorded.reason, inputs.chunk_steps
        )
        self.most_steps = FIRST_CALL

    def take(self, chunk: Chunk, first: int, kept: Sequence[int], remaining: int) -> Taken:
        """Takes one step of a chunk, or as many as one call of the native loop takes.

        Args:
            chunk: inputs of the steps.
            first: number of the first step in the chunk.
            kept: numbers of the steps before which positions are to be kept.
            remaining: steps that the run has left.
        """
        if self.shared:  # the start may be the caller's
            self._own_chains()
            self.shared = False
        if self.choice.now(remaining):
            self._go_native(chunk)
        began = time.perf_counter()
        if self.arriving is not None:
            self.batch, self.update = self.arriving.next()
        if self.loop is None or (self.arriving is not None and len(self.batch.indices) != self.loop.batch_size):
            taken = self._one(chunk, first, kept)
        else:
            last = first + (self.most_steps if self.arriving is None else 1)
            last = min(last, len(chunk.settings.step_size))
            taken = self.loop.take(self.chains, chunk, self.batch, first, last, kept)
            if taken.snapshots is not None:
                taken = taken._replace(snapshots=self._found(taken.snapshots))
        self._took(len(taken.log_posterior), time.perf_counter() - began)
        return taken

    def snapshot(self) -> Snapshot:
        """Of all chains, positions in the model's unconstrained coordinates; steps to come do not write to it."""
        snapshot = self._found(Snapshot.of(self.chains))
        return snapshot if self.loop is None and not self.by_block else pytree.tree_map(torch.clone, snapshot)

    def _found(self, snapshot: Snapshot) -> Snapshot:
        """In the model's coordinates, what is in the kernel's."""
        return snapshot._replace(positions=self.table.position(snapshot.positions))

    def at(self, chain: int, indices: Tensor | None) -> tuple[Position, Batch]:
        """Position of one chain, and its rows: those of a step, unless all steps or all chains have the same."""
        position = tree.map(lambda leaf: leaf[chain], self.snapshot().positions)
        batch = self.batch if indices is None else self.compiled.gathered(indices[chain])
        return self.compiled.at_rows(position, batch.indices), batch

    def _one(self, chunk: Chunk, number: int, kept: Sequence[int]) -> Taken:
        """A step by the recorded function, which does not move chains from where the log posterior is not finite."""
        indices, noise, settings = chunk.step(number)
        if indices is not None:
            self.batch = self._gathered(indices)
        try:
            after, info = self.update(self.table.rows(self.chains, indices), self.batch, noise, settings)
        except LinAlgError:  # a matrix of the model is no longer positive definite
            values = self._one_by_one(indices)
            return Taken(values.unsqueeze(0), torch.zeros_like(values, dtype=torch.long).unsqueeze(0))
        if torch.isfinite(info.log_posterior).all():
            self.chains = self.table.write(self.chains, after, indices)
        taken = Taken(info.log_posterior.unsqueeze(0), info.clamped.unsqueeze(0))
        if bisect_right(kept, number) == bisect_right(kept, number + 1):
            return taken
        return taken._replace(kept=[1], snapshots=pytree.tree_map(lambda leaf: leaf.unsqueeze(0), self.snapshot()))

    def _gathered(self, indices: Tensor) -> Batch:
        return self.compiled.gathered(indices)._replace(anchor=self.anchor)

    def _one_by_one(self, indices: Tensor | None) -> Tensor:
        """Log posterior of every chain, NaN where the model raises."""
        num_chains = len(next(iter(self.chains.position.values())))
        values = torch.full((num_chains,), torch.nan, dtype=torch.float64)
        for chain in range(num_chains):
            position, batch = self.at(chain, indices)
            with suppress(LinAlgError), torch.no_grad():
                values[chain] = self.compiled(position, batch)
        return values

    def _own_chains(self) -> None:
        """Copies the state, which a loop writes to; one leaf after another, and so not all twice in memory."""
        leaves, structure = pytree.tree_flatten(self.chains)
        self.chains = None
        for place in range(len(leaves)):
            leaves[place] = leaves[place].clone(memory_format=torch.contiguous_format)
        self.chains = pytree.tree_unflatten(leaves, structure)

    def _go_native(self, chunk: Chunk) -> None:
        """From here on a native loop takes the steps; or where they go block by block, native code within them."""
        if self.by_block:
            blocks, settings = self.recorded.function, chunk.step(0)[2]
            assert isinstance(blocks, Blockwise)
            self.choice.compiled(lambda: blocks.compile(self.chains, self.example, settings))
            return
        self._own_chains()
        self.loop = self.choice.compiled(lambda: self._compiled(chunk))
        self.most_steps = max(1, min(FIRST_CALL, int(CALL_SECONDS / (self.choice.recorded_seconds() or CALL_SECONDS))))

    def _compiled(self, chunk: Chunk) -> Loop:
        columns = None if chunk.indices is None else self.compiled.data.rows
        single = self.arriving is not None
        loop = Loop(self.recorded, self.table, self.chains, chunk, self.example, columns, single)
        if not self.large:  # a copy of the state would cost memory
            try:
                self._check(loop, chunk)
            except NativeError:
                raise
            except Exception as error:  # of the native code, since the recorded function has run before
                raise NativeError(f"Its first steps fail: {first_line(error)}") from error
        return loop

    def _check(self, loop: Loop, chunk: Chunk) -> None:
        """Raises `NativeError` where a loop does not take the steps that the recorded function takes."""
        native, state = self.table.copied(self.chains), self.chains
        number = 1 if loop.single else min(TRIAL_STEPS, len(chunk.settings.step_size))
        loop.take(native, chunk, self.example, 0, number, ())
        with suppress(LinAlgError):
            for step in range(number):
                indices, noise, settings = chunk.step(step)
                batch = self.example if indices is None else self._gathered(indices)
                after, _ = self.recorded.function(self.table.rows(state, indices), batch, noise, settings)
                state = self.table.write(self.table.copied(state), after, indices)
            for found, expected in zip(pytree.tree_leaves(native), pytree.tree_leaves(state), strict=True):
                if torch.isfinite(expected).all() and not agree(found, expected):
                    raise NativeError("The compiled loop takes other steps than the recorded function")

    def _took(self, num_steps: int, seconds: float) -> None:
        self.choice.took(num_steps, seconds)
        if num_steps == self.most_steps and self.loop is not None:
            self.most_steps = max(1, min(4 * num_steps, round(num_steps * CALL_SECONDS / max(seconds, 1e-9))))
