"""Everything random that a run takes, drawn ahead by seeded generators: noise, minibatch indices; and settings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_scale.batches import Permutations
from pyro_scale.compile import CompiledModel
from pyro_scale.loaders import Streamed
from pyro_scale.pieces import Pieces
from pyro_scale.schedules import as_schedule, check_number
from pyro_scale.types import Kernel, Noise, Schedule, Settings, Shapes

CHUNK_STEPS = 2**13
"""At most so many steps are drawn at a time: thousands, since a compiled step of a small model takes microseconds."""

CHUNK_BYTES = 2**24
"""At most so many bytes of noise, and of indices, unless one step takes more.

A chunk is two of these at most, and two chunks are held. Memory of this size is used again by the next chunk, where
more of it would be handed back to the system and cleared in between, which takes longer than to draw normals.
"""

AHEAD_BYTES = 2**24
"""Where one step takes more, as with millions of weights, no second chunk is held: it would cost as much as they do."""

SHARE = 4
"""Of the noise of a chain's step, one part in so many is in memory then, drawn ahead while the gradient is taken."""

GROUP = 16
"""Torch makes so many normals at a time: steps in multiples of it take the same numbers in chunks of any length."""


class Chunk(NamedTuple):
    """Inputs of consecutive steps, each tensor contiguous and with a leading step axis.

    Attributes:
        indices: rows of the minibatches, `(num_steps, num_chains, batch_size)`; None in full batch and for a loader.
        noise: tree of standard normals, `(num_steps, num_chains, *shape)`; `()` where steps take it in pieces.
        settings: those of the steps, `(num_steps,)` each; fewer where the run ends before the chunk does.
        length: number of steps.
    """

    indices: Tensor | None
    noise: Noise
    settings: Settings
    length: int

    def step(self, number: int) -> tuple[Tensor | None, Noise, Settings]:
        """Inputs of one step."""
        noise = {name: leaf[number] for name, leaf in self.noise.items()} if self.noise else ()
        indices = None if self.indices is None else self.indices[number]
        return indices, noise, Settings(*(column[number] for column in self.settings))


class Inputs:
    """Everything random that steps take, drawn in chunks from two generators, one chunk ahead in a second thread.

    The length of a chunk depends on shapes and on the length of the run alone. On a CPU the numbers do not depend on
    the length of the run: a longer one with the same seeds goes on where a shorter one ends.

    Args:
        compiled: the model.
        kernel: whose settings, or schedules of them, the chunks carry.
        shapes: of the noise of a step of one chain.
        num_chains: number of chains.
        num_steps: length of the run; its last step is followed by one that only evaluates.
        seeds: of the noise and of the minibatches.
        warmup_steps: during which the kernel may adapt itself.
        ahead: whether the next chunk is drawn while the steps of the present one run.
        by_block: whether steps may take their noise `in_pieces`; they do where it is large, on a CPU.
    """

    def __init__(
        self,
        compiled: CompiledModel,
        kernel: Kernel,
        shapes: Any,
        num_chains: int,
        num_steps: int,
        seeds: Sequence[int],
        warmup_steps: int = 0,
        ahead: bool = True,
        by_block: bool = False,
    ) -> None:
        self.shapes: Shapes = shapes or {}
        self.num_chains = num_chains
        self.num_steps = num_steps
        self.dtype, self.device = compiled.data.dtype, compiled.data.device
        self.noise_generator = torch.Generator(self.device).manual_seed(seeds[0])
        size = compiled.batch_size
        self.batches = None
        if size is not None and not isinstance(compiled.data, Streamed):
            rows_generator = torch.Generator().manual_seed(seeds[1])
            self.batches = Permutations(compiled.num_data, size, num_chains, rows_generator)
        self.settings = _evaluated(kernel, num_steps, warmup_steps, self.device)
        numbers = num_chains * sum(shape.numel() for shape in self.shapes.values())
        step_bytes = max(numbers * self.dtype.itemsize, num_chains * (size or 0) * torch.long.itemsize)
        self.chunk_steps = _chunk_steps(step_bytes, num_steps + 1)
        self.ahead, self.pieces_ahead = ahead and step_bytes <= AHEAD_BYTES, ahead
        large = numbers * self.dtype.itemsize > AHEAD_BYTES
        self.by_block = by_block and large and self.device.type == "cpu"
        self.pieces: Pieces | None = None
        self.thread: ThreadPoolExecutor | None = None
        self.next: Future[tuple[Noise, Tensor | None]] | None = None
        self.before_next: dict[str, Tensor] = {}

    def noise(self, *leading: int, shapes: Any = None) -> Noise:
        """Standard normals for every site, with the given leading axes; `shapes` are those of a step unless given."""
        self._forget_next()
        return self._noise(*leading, shapes=self.shapes if shapes is None else shapes)

    def in_pieces(self, sizes: Sequence[int]) -> Pieces:
        """The noise of a step in pieces, in every call of the same sizes; a `SHARE` of a chain's is drawn ahead."""
        if self.pieces is None:
            # small chains are one piece each, for which to hand it over takes longer than to draw it
            ahead = self.pieces_ahead and len(sizes) > 1
            room = max(2, sum(sizes) // SHARE // max(sizes)) if ahead else 1
            self.pieces = Pieces(self.noise_generator, self.dtype, sizes, room)
        return self.pieces

    def draw(self, start: int) -> Chunk:
        """The next chunk of inputs; the settings are those of step `start` and the ones after it."""
        noise, indices = self._draw() if self.next is None else self.next.result()
        self.next = None
        if self.device.type != "cpu":
            noise = self._noise(self.chunk_steps, self.num_chains, shapes=self.shapes)
        end = start + self.chunk_steps
        if self.ahead and end <= self.num_steps:
            if self.thread is None:
                self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="pyro_scale.inputs")
            self.before_next = self._state()
            self.next = self.thread.submit(self._draw)
        indices = None if indices is None else indices.to(self.device)
        return Chunk(indices, noise, Settings(*(column[start:end] for column in self.settings)), self.chunk_steps)

    def state(self) -> dict[str, Tensor]:
        """States of the generators, and where the permutations of the rows are, after the chunks handed out."""
        return self._state() if self.next is None else self.before_next

    def restore(self, state: dict[str, Tensor]) -> None:
        """Goes back to a state."""
        self._forget_next()
        self.noise_generator.set_state(state["noise"])
        if self.batches is not None:
            self.batches.restore(state)

    def close(self) -> None:
        """Ends the second thread, when it has drawn its chunk; whoever draws again starts another."""
        self._forget_next()
        if self.pieces is not None:
            self.pieces.close()
        if self.thread is not None:
            self.thread.shutdown()
            self.thread = None

    def _draw(self) -> tuple[Noise, Tensor | None]:
        """What of a chunk the CPU draws. Other devices run after the calls that ask for it anyway."""
        now = self.device.type == "cpu" and not self.by_block
        noise = self._noise(self.chunk_steps, self.num_chains, shapes=self.shapes) if now else ()
        return noise, None if self.batches is None else self.batches.draw(self.chunk_steps)

    def _noise(self, *leading: int, shapes: Any) -> Noise:
        if not shapes:
            return ()
        sizes = [math.prod(leading[1:]) * shape.numel() for shape in shapes.values()]
        # in one piece, step after step: the numbers of a step then do not depend on how many follow it
        numbers = torch.randn(
            leading[0], sum(sizes), generator=self.noise_generator, dtype=self.dtype, device=self.device
        )
        leaves = zip(shapes.items(), numbers.split(sizes, 1), strict=True)
        return {name: leaf.reshape(*leading, *shape).contiguous() for (name, shape), leaf in leaves}

    def _state(self) -> dict[str, Tensor]:
        pieces, generator = self.pieces, self.noise_generator
        state = {"noise": generator.get_state() if pieces is None else pieces.state()}
        if self.batches is not None:
            state |= self.batches.state()
        return state

    def _forget_next(self) -> None:
        """Waits for second threads and goes back to where the generators were before them."""
        if self.pieces is not None:
            self.pieces.forget()
        if self.next is not None:
            wait([self.next])
            self.next = None
            self.restore(self.before_next)

    def example(self) -> tuple[Tensor | None, Noise, Settings]:
        """Inputs of one step that use up no random number: rows 0, 1, ..., and noise of 0."""
        shapes = {} if self.by_block else self.shapes
        noise = {
            name: torch.zeros((self.num_chains, *shape), dtype=self.dtype, device=self.device)
            for name, shape in shapes.items()
        }
        indices = None
        if self.batches is not None:
            rows = torch.arange(self.batches.batch_size, device=self.device)
            indices = rows.expand(self.num_chains, -1)
        return indices, noise if shapes else (), Settings(*(column[0] for column in self.settings))


def _chunk_steps(step_bytes: int, num_steps: int) -> int:
    """A power of two: runs of many lengths share a compiled loop, which is compiled for the length of a chunk."""
    most = min(CHUNK_STEPS, max(1, CHUNK_BYTES // max(1, step_bytes)))
    return min(1 << (most.bit_length() - 1), max(GROUP, 1 << (num_steps - 1).bit_length()))


def _evaluated(kernel: Kernel, num_steps: int, warmup_steps: int, device: torch.device) -> Settings:
    """Settings of every step, in float64: schedules are checked before any step.

    There is one more, equal to the last, for the step that only evaluates the last draw: `(num_steps + 1,)`.
    """
    name = type(kernel).__name__
    assert kernel.step_size is not None

    def column(setting: str, value: float | Schedule, largest: float = math.inf) -> Tensor:
        schedule = as_schedule(name, setting, value)
        if not callable(value):
            return torch.full((num_steps + 1,), schedule(0), dtype=torch.float64, device=device)
        steps = range(max(1, num_steps))
        values = [check_number(name, f"{setting}({step})", schedule(step), below=largest) for step in steps]
        return torch.tensor([*values[:num_steps], values[-1]], dtype=torch.float64, device=device)

    largest = getattr(kernel, "max_step_size", math.inf)
    adapting = (torch.arange(num_steps + 1, device=device) < warmup_steps).to(torch.float64)
    return Settings(column("step_size", kernel.step_size, largest), column("temperature", kernel.temperature), adapting)
