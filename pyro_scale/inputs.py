"""Everything random that a run takes, drawn ahead by seeded generators: noise, minibatch indices; and settings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_scale.batches import Permutations
from pyro_scale.compile import CompiledModel
from pyro_scale.loaders import Streamed
from pyro_scale.schedules import as_schedule, check_number
from pyro_scale.types import Kernel, Noise, Schedule, Settings, Shapes

CHUNK_STEPS = 256
CHUNK_NUMBERS = 2**22
CHUNK_INDICES = 2**25
"""At most so many steps, so many normals and so many indices of rows are drawn ahead, of all chains."""


class Chunk(NamedTuple):
    """Inputs of consecutive steps, each tensor with a leading step axis.

    Attributes:
        indices: rows of the minibatches, `(num_steps, num_chains, batch_size)`; None in full batch and for a loader.
        noise: tree of standard normals, `(num_steps, num_chains, *shape)`.
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
    """Everything random that steps take, drawn ahead in chunks from two generators.

    The length of a chunk depends on the shapes alone, so that the numbers do not depend on how steps are run.
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
    ) -> None:
        self.shapes: Shapes = shapes or {}
        self.num_chains = num_chains
        self.dtype, self.device = compiled.data.dtype, compiled.data.device
        self.noise_generator = torch.Generator(self.device).manual_seed(seeds[0])
        size = compiled.batch_size
        self.batches = None
        if size is not None and not isinstance(compiled.data, Streamed):
            rows_generator = torch.Generator().manual_seed(seeds[1])
            self.batches = Permutations(compiled.num_data, size, num_chains, rows_generator)
        self.settings = _evaluated(kernel, num_steps, warmup_steps, self.device)
        numbers = num_chains * (sum(shape.numel() for shape in self.shapes.values()))
        indices = num_chains * (size or 0)
        self.chunk_steps = min(CHUNK_STEPS, CHUNK_NUMBERS // max(1, numbers), CHUNK_INDICES // max(1, indices))
        self.chunk_steps = max(1, self.chunk_steps)

    def noise(self, *leading: int, shapes: Any = None) -> Noise:
        """Standard normals for every site, with the given leading axes; `shapes` are those of a step unless given."""
        shapes = self.shapes if shapes is None else shapes
        drawn = {}
        for name, shape in shapes.items() if shapes else ():
            size = (*leading, *shape)
            drawn[name] = torch.randn(size, generator=self.noise_generator, dtype=self.dtype, device=self.device)
        return drawn if shapes else ()

    def draw(self, start: int) -> Chunk:
        """The next chunk of inputs; the settings are those of step `start` and the ones after it."""
        settings = Settings(*(column[start : start + self.chunk_steps] for column in self.settings))
        noise = self.noise(self.chunk_steps, self.num_chains)
        indices = None if self.batches is None else self.batches.draw(self.chunk_steps).to(self.device)
        return Chunk(indices, noise, settings, self.chunk_steps)

    def state(self) -> dict[str, Tensor]:
        """States of the generators, and where the permutations of the rows are."""
        state = {"noise": self.noise_generator.get_state()}
        if self.batches is not None:
            state |= self.batches.state()
        return state

    def restore(self, state: dict[str, Tensor]) -> None:
        """Goes back to a state."""
        self.noise_generator.set_state(state["noise"])
        if self.batches is not None:
            self.batches.restore(state)

    def example(self) -> tuple[Tensor | None, Noise, Settings]:
        """Inputs of one step that use up no random number: rows 0, 1, ..., and noise of 0."""
        noise = {
            name: torch.zeros((self.num_chains, *shape), dtype=self.dtype, device=self.device)
            for name, shape in self.shapes.items()
        }
        indices = None
        if self.batches is not None:
            rows = torch.arange(self.batches.batch_size, device=self.device)
            indices = rows.expand(self.num_chains, -1)
        return indices, noise if self.shapes else (), Settings(*(column[0] for column in self.settings))


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
        values = [check_number(name, f"{setting}({step})", schedule(step), below=largest) for step in range(num_steps)]
        return torch.tensor([*values, values[-1]], dtype=torch.float64, device=device)

    largest = getattr(kernel, "max_step_size", math.inf)
    adapting = (torch.arange(num_steps + 1, device=device) < warmup_steps).to(torch.float64)
    return Settings(column("step_size", kernel.step_size, largest), column("temperature", kernel.temperature), adapting)
