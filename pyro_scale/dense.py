"""What warm-up does with matrices: modes by Newton's method, all eigenvalues, covariances of draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from pyro_scale.climbs import curvature_at, distinct_modes
from pyro_scale.compile import CompiledModel
from pyro_scale.errors import StartError
from pyro_scale.gradient import Frame
from pyro_scale.hessian import largest_curvatures, mean_curvature, negative_hessians, row_blocks
from pyro_scale.mode import Mode
from pyro_scale.pilot import explore
from pyro_scale.progress import Reporter
from pyro_scale.spread import autocorrelation_times, factor_of_spread
from pyro_scale.types import Batch, Kernel, Position
from pyro_scale.whitening import Whitened

PILOT_CHAINS = 8
CURVATURE_ROWS = 4096
CURVATURE_DRAWS = 32
"""Of a window of the pilot, whose Hessians are averaged."""
MOST_THINNING = 1000
FAR = 1e6
"""Standard deviations beyond which a chain has diverged, though its numbers are finite yet; many, since without a mode
the first coordinates may be far too narrow."""
SETTLING = 10
"""Autocorrelation times from the pilot's end to the first draw."""


def no_step_size(step_size: float) -> StartError:
    """Where chains do not stay finite, at whatever step size; `step_size` was the last."""
    return StartError(
        f"Warm-up found no step size at which chains stay finite; the last was {step_size:g}. Start nearer to the "
        "posterior (initial={...}), rescale, or set a step_size: ps.kernels.SGHMC(step_size=...)."
    )


class Ascended(NamedTuple):
    """Where the climbs from a few starts ended.

    Attributes:
        modes: the distinct modes; empty if there is none.
        best: the highest of them, or the first start, with the curvature that coordinates are to be whitened by.
    """

    modes: Sequence[Mode]
    best: Mode


class Learned(NamedTuple):
    """What a window of the pilot teaches; vectors are in its coordinates.

    Attributes:
        draws: where its chains were, in order, `(n, pilot chains, d)`.
        centers: means of the chains of each center, `(centers, d)`.
        spread: lower triangle, `(d, d)`, that turns better coordinates into those of the window; its diagonal, `(d,)`,
            where it is one.
        time: kept positions that bring one independent draw.
    """

    draws: Tensor
    centers: Tensor
    spread: Tensor
    time: float


class Around(NamedTuple):
    """Draws of a window around the means of the chains of each center.

    Attributes:
        means: `(centers, d)`.
        scaled: draws around them, in sds of the coordinates, `(n, pilot chains, d)`.
        time: kept positions that bring one independent draw.
    """

    means: Tensor
    scaled: Tensor
    time: float

    @property
    def effective(self) -> float:
        """How many independent draws they are worth."""
        return self.scaled.shape[0] * self.scaled.shape[1] / self.time


def around_means(draws: Tensor, num_centers: int, sd: float) -> Around | None:
    """Draws `(n, pilot chains, d)`, whose chains started around one center after another; None if one has diverged."""
    group = torch.arange(draws.shape[1], device="cpu") % num_centers
    means = torch.stack([draws[:, group == each].mean((0, 1)) for each in range(num_centers)])
    scaled = (draws - means[group]) / sd
    if not float(scaled.abs().max()) < FAR:
        return None
    time = float(torch.maximum(autocorrelation_times(scaled), autocorrelation_times(scaled**2)).max())
    return Around(means, scaled, time)


class Dense:
    """Of models whose matrices fit.

    Args:
        compiled: the model.
        sd: of the coordinates, where they are right.
        generator: of what is random.

    Attributes:
        chains: of the pilot.
        most_steps, most_kept: of a window of the pilot, and positions kept of each chain there.
        most_thinning: steps from draw to draw.
        scatter: sd of the first starts around their centers, relative to that of the coordinates.
        slower: times the autocorrelation time of a coordinate that every step moves, what draws are to be apart.
        choices: whether minibatches get control variates; the better, where there are two.
        noise_positions, noise_repeats: at which the noise of minibatches is measured, and on how many; None for as
            many as `noise_variance` takes by itself.
        blocks: all rows.
    """

    most_steps: ClassVar[int] = 100_000
    most_kept: ClassVar[int] = 2000
    most_thinning: ClassVar[int] = MOST_THINNING
    chains: ClassVar[int] = PILOT_CHAINS
    scatter: ClassVar[float] = 1.0
    slower: ClassVar[float] = 1.0
    choices: ClassVar[Sequence[bool]] = (True,)
    noise_positions: ClassVar[int] = 16
    noise_repeats: ClassVar[int | None] = None

    def __init__(self, compiled: CompiledModel, sd: float, generator: torch.Generator) -> None:
        self.compiled = compiled
        self.sd = sd
        self.generator = generator
        self.blocks = row_blocks(compiled)

    def ascended(self, starts: Position, seek: Callable[[], None]) -> Ascended:
        """The modes above the first starts; `seek` is called on the way."""
        seek()
        modes = distinct_modes(self.compiled, starts)
        best = modes[0] if modes else curvature_at(self.compiled, self.blocks, {k: v[0] for k, v in starts.items()})
        # in other modes too steps must be stable
        curvature = torch.stack([mode.negative_hessian for mode in modes or [best]]).mean(0)
        return Ascended(modes, best._replace(negative_hessian=curvature))

    def whitened(self, best: Mode) -> Whitened:
        """Coordinates of curvature 1 per datum."""
        return Whitened(self.compiled, best, self.compiled.num_data)

    def curvatures(self, whitened: Whitened, vectors: Tensor) -> Tensor:
        """The largest curvature per datum, in size, at a few vectors `(n, d)`."""
        return largest_curvatures(whitened, self._rows(), whitened.unflat(vectors))

    def _rows(self) -> Batch:
        """All rows, or as many as curvatures are looked at."""
        batch = self.blocks[0]
        if len(batch.indices) > CURVATURE_ROWS and self.compiled.structure.minibatch_error is None:
            rows = torch.randperm(self.compiled.num_data, generator=self.generator, device="cpu")
            batch = self.compiled.batch(rows[:CURVATURE_ROWS])
        return batch

    def explored(
        self,
        kernel: Kernel,
        number: int,
        every: int,
        start: Position,
        seeds: Sequence[int],
        frame: Frame,
        centers: Tensor,
        reporter: Reporter,
    ) -> Learned | None:
        """What a window of the pilot teaches beyond its first third; None if a chain diverges.

        Args:
            kernel: with its step size.
            number: of positions kept of each chain.
            every: steps from one to the next.
            start: of the chains, unconstrained.
            seeds: of the run.
            frame: what the chains move in.
            centers: around which they started, one after another, `(centers, d)`.
            reporter: is told of the steps.
        """
        found = explore(self.compiled, kernel, number, every, start, seeds, frame, reporter)
        if found is None:
            return None
        assert frame.whitened is not None
        draws = frame.whitened.flat(frame.whitened.coordinates(found))[number // 3 :]
        around = around_means(draws, len(centers), self.sd)
        if around is None:
            return None
        some = draws.flatten(0, 1)[torch.linspace(0, draws[..., 0].numel() - 1, CURVATURE_DRAWS, device="cpu").long()]
        hessians = negative_hessians(frame.whitened, self._rows(), frame.whitened.unflat(some))
        spread = factor_of_spread(around.scaled.flatten(0, 1), around.effective, mean_curvature(hessians))
        return Learned(draws, around.means, spread, around.time)

    def astray(self, step_size: float) -> Exception:
        """Of chains that do not stay finite."""
        return no_step_size(step_size)

    def strength(self, variance: Position) -> float:
        """V where it is largest."""
        return max(float(leaf.max()) for leaf in variance.values() if leaf.numel() > 0)

    def settling(self, steps: int, thinning: int) -> int:
        """Steps from the pilot's end to the first draw, of the steps that would be right and the thinning chosen."""
        return min(steps, SETTLING * thinning)
