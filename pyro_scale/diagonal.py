r"""What warm-up does without matrices, for many coordinates: a diagonal of curvature, and products of the Hessian.

Where Newton's method finds a mode the curvature is the Hessian's. Elsewhere that of the rows is the variance of their
gradients, the diagonal of Fisher's information as the data show it: it is positive in every model, where the Hessian of
a network is not, and a scale factor by which a wrong model misses the curvature is found again in the largest
eigenvalue, which the step size follows. What does not split over rows, as the prior, adds the diagonal of its Hessian.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pyro_scale import tree
from pyro_scale.climber import Climber
from pyro_scale.compile import CompiledModel
from pyro_scale.dense import MOST_THINNING, PILOT_CHAINS, SETTLING, Ascended, Learned, no_step_size
from pyro_scale.fisher import Fisher
from pyro_scale.gradient import Frame
from pyro_scale.mode import Mode
from pyro_scale.pilot import explore
from pyro_scale.products import Products, largest_eigenvalue
from pyro_scale.progress import Reporter
from pyro_scale.seen import Seen
from pyro_scale.spread import autocorrelation_times, shrunk_variances
from pyro_scale.starts import LinAlgError
from pyro_scale.steps import LARGE
from pyro_scale.types import Batch, Kernel, Position
from pyro_scale.whitening import Whitened

logger = logging.getLogger("pyro_scale")

MOST_CLIMBS = 4
LEAST_ASCENT = 1000
"""Gradients that a climb may take, however short the run."""
ASCENT_SHARE = 4
"""Gradients of a climb for each draw of a chain."""
CURVATURE_ROWS, CURVATURE_NUMBERS = 4096, 2**28
"""Rows on which the largest curvature is looked at: fewer, where these times coordinates would be more."""
SAME_MODE = 1.0
"""Squared distance, in posterior variances a coordinate, within which two climbs have found the same mode."""
FAR = 1e3
"""Standard deviations beyond which a chain has diverged, though its numbers are finite yet."""
LONG = 10.0
"""Autocorrelation times below which a window teaches nothing of means and variances."""
MOST_STEPS, PILOT_NUMBERS, RUN_NUMBERS = 100_000, 3 * 10**8, 10**7
"""Coordinates times steps of a window, and times thinning, unless the latter is the ten of a run that is not tuned."""


class Diagonal:
    """Of models with so many coordinates that there are no matrices; attributes and methods are those of `Dense`.

    Args:
        compiled: the model.
        sd: of the coordinates, where they are right.
        generator: of what is random.
        num_samples: draws of a chain, to which the climbs are in proportion.
    """

    def __init__(self, compiled: CompiledModel, sd: float, generator: torch.Generator, num_samples: int) -> None:
        self.compiled = compiled
        self.sd = sd
        self.generator = generator
        self.size = sum(shape.numel() for shape in compiled.latent.values())
        self.most_ascent = max(LEAST_ASCENT, ASCENT_SHARE * num_samples)
        self.most_steps = min(MOST_STEPS, max(100, PILOT_NUMBERS // self.size))
        self.most_kept = 2000 if self.size <= LARGE else 300
        self.most_thinning = min(MOST_THINNING, max(10, RUN_NUMBERS // self.size))
        self.num_samples = num_samples
        self.chains = PILOT_CHAINS
        small = self.size <= LARGE
        self.noise_positions, self.noise_repeats = (16, 16) if small else (1, 64)
        self.choices: Sequence[bool] = (False, True) if self.size <= LARGE else (False,)
        self.fisher = Fisher(compiled, generator)
        self.scatter = self.slower = 1.0
        self.direction: Tensor | None = None

    @property
    def blocks(self) -> list[Batch]:
        """All rows once."""
        return self.fisher.blocks

    def ascended(self, starts: Position, seek: Callable[[], None]) -> Ascended:
        """The ends of climbs from the first starts, where they differ; chains start nearer the ends than the normal.

        The first draws around a mode are within the posterior in its steepest direction: with many coordinates the
        normal of a diagonal reaches far beyond the posterior where they are correlated.
        """
        number = min(MOST_CLIMBS, len(next(iter(starts.values()))))
        climber = Climber(self.fisher, starts, self.most_ascent, self.generator, seek)
        modes: list[Mode] = []
        for chain in range(number):
            seek()
            climbed = climber.climbed(tree.map(lambda leaf, k=chain: leaf[k], starts))
            if len(climbed) > 1 and (normal := climber.without_mode(climbed[:-1])) is not None:
                modes = [normal]  # the same from all starts
                break
            modes.append(climbed[-1])
        best = max(modes, key=lambda mode: mode.log_posterior if math.isfinite(mode.log_posterior) else -math.inf)
        curvature = sum(mode.negative_hessian for mode in modes) / len(modes)
        assert isinstance(curvature, Tensor)
        best = best._replace(negative_hessian=curvature)
        whitened = self.whitened(best)
        distinct: list[Mode] = []
        for mode in (best, *modes):
            at = tree.ravel(mode.position)
            apart = [((at - tree.ravel(other.position)) ** 2 * curvature).mean() for other in distinct]
            if all(float(one) > SAME_MODE for one in apart):
                distinct.append(mode)
        if self.size > LARGE:
            self.chains = max(2, len(distinct))
        center = whitened.flat(whitened.coordinates(best.position)).unsqueeze(0)
        self.scatter = max(1.0, float(self.curvatures(whitened, center).max())) ** -0.5
        return Ascended(distinct, best)

    def whitened(self, best: Mode) -> Whitened:
        """Coordinates whose own curvatures are 1 per datum."""
        return Whitened(self.compiled, best, self.compiled.num_data)

    def curvatures(self, whitened: Whitened, vectors: Tensor) -> Tensor:
        """The largest curvature per datum, in size, at a few vectors `(n, d)`, as some rows show it."""
        found = []
        batches = self.fisher.some_rows(
            max(self.fisher.block_rows, min(CURVATURE_ROWS, CURVATURE_NUMBERS // self.size))
        )
        number = sum(len(batch.indices) for batch in batches)
        few = 4 if self.size <= LARGE else 1
        for vector in vectors[:: -(-len(vectors) // few)]:
            terms = [lambda at, batch=batch: whitened(at, batch) / (batch.scale * number) for batch in batches]
            direction = self.direction
            if direction is None:
                direction = torch.randn(vector.shape, generator=self.generator, dtype=torch.float64, device="cpu")
            try:
                size, direction = largest_eigenvalue(Products(terms, whitened.unflat(vector)), direction.to(vector))
            except LinAlgError:
                continue
            if 0 < size < math.inf:
                self.direction = direction
                found.append(size)
        return torch.tensor(found or [1.0])

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
        """As `Dense.explored`; means and variances stay where the window is too short to tell them."""
        assert frame.whitened is not None
        seen = Seen(frame.whitened, centers, number, self.generator)
        found = explore(self.compiled, kernel, number, every, start, seeds, frame, reporter, seen)
        if found is None:
            return None
        if not float((found[""] - centers[0][seen.traced]).abs().max()) < FAR * self.sd + float(
            (centers - centers[0]).abs().max()
        ):
            return None
        traces = found[""][number // 3 :] / self.sd
        time = float(torch.maximum(autocorrelation_times(traces), autocorrelation_times(traces**2)).max())
        spread = torch.ones_like(centers[0])
        if len(traces) >= LONG * time:
            centers, variances = seen.moments()
            spread = shrunk_variances(variances / self.sd**2, len(traces) * traces.shape[1] / time)
        return Learned(torch.stack(seen.snapshots), centers, spread.sqrt(), time)

    def astray(self, step_size: float) -> Exception:
        """Of chains that do not stay finite."""
        return no_step_size(step_size)

    def strength(self, variance: Position) -> float:
        """V where it is large: the largest of many estimates would be one that is wrong."""
        values = tree.ravel(variance)
        return float(values[:: max(1, len(values) // 10**5)].double().quantile(0.99))

    def settling(self, steps: int, thinning: int) -> int:
        """As `Dense.settling`; at most as many as without tuning where the thinning is below the autocorrelation."""
        return min(steps, max(SETTLING * thinning, self.num_samples * thinning // 2))
