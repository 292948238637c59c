r"""What warm-up does without matrices, for many coordinates: a diagonal of curvature, and products of the Hessian.

The curvature of the rows is the variance of their gradients, the diagonal of Fisher's information as the data show it:
it is positive in every model, where the Hessian of a network is not, and a scale factor by which a wrong model misses
the curvature is found again in the largest eigenvalue, which the step size follows. What does not split over rows, as
the prior, adds the diagonal of its Hessian.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_scale import tree
from pyro_scale.ascent import Ascent, Climb
from pyro_scale.capture import first_line
from pyro_scale.compile import CompiledModel
from pyro_scale.dense import MOST_THINNING, PILOT_CHAINS, SETTLING, Ascended, Learned
from pyro_scale.gradient import Frame, anchor_at
from pyro_scale.gradient_noise import noise_variance
from pyro_scale.hessian import Spectrum
from pyro_scale.mode import Mode, with_all_rows
from pyro_scale.newton_cg import ascend
from pyro_scale.products import Products, diagonal, largest_eigenvalue
from pyro_scale.sample import explore
from pyro_scale.spread import autocorrelation_times
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
FISHER_BATCHES, FISHER_ROWS = 64, 64
CURVATURE_ROWS, CURVATURE_NUMBERS = 4096, 2**28
"""Rows on which the largest curvature is looked at: fewer, where these times coordinates would be more."""
BLOCK_NUMBERS = 2**24
NEWTON_NUMBERS, NEWTON_ROWS = 2**28, 2**15
"""Rows of Newton's method: so many times coordinates at most, and of many more rows than the latter a sample."""
SAME_MODE = 1.0
"""Squared distance, in posterior variances a coordinate, within which two climbs have found the same mode."""
TRACED = 300
"""Coordinates whose autocorrelation is looked at."""
LONG = 10.0
"""Autocorrelation times below which a window teaches nothing of means and variances."""
MOST_STEPS, PILOT_NUMBERS, RUN_NUMBERS = 100_000, 10**9, 10**7
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
        self.most_steps = min(MOST_STEPS, PILOT_NUMBERS // self.size)
        self.most_kept = 2000 if self.size <= LARGE else 300
        self.most_thinning = min(MOST_THINNING, max(10, RUN_NUMBERS // self.size))
        self.num_samples = num_samples
        self.chains = PILOT_CHAINS
        small = self.size <= LARGE
        self.noise_positions, self.noise_repeats = (16, 16) if small else (1, 64)
        self.choices: Sequence[bool] = (False, True) if self.size <= LARGE else (False,)
        self.splits = compiled.structure.minibatch_error is None and not compiled.local
        most = max(compiled.batch_size or 0, min(CURVATURE_ROWS, BLOCK_NUMBERS // self.size), 1)
        whole = not self.splits or (compiled.batch_size is None and compiled.num_data <= most)
        self.block_rows = compiled.num_data if whole else min(most, compiled.num_data)
        self.scatter = 1.0
        self.direction: Tensor | None = None

    @property
    def blocks(self) -> list[Batch]:
        """All rows once."""
        if not self.splits:
            return [self.compiled.batch()]
        rows = torch.arange(self.compiled.num_data, device="cpu").split(self.block_rows)
        return [self.compiled.batch(block) for block in rows]

    def ascended(self, starts: Position) -> Ascended:
        """The ends of climbs from the first starts, where they differ; chains start nearer the ends than the normal.

        The first draws around a mode are within the posterior in its steepest direction: with many coordinates the
        normal of a diagonal reaches far beyond the posterior where they are correlated.
        """
        number = min(MOST_CLIMBS, len(next(iter(starts.values()))))
        ascent = Ascent(self.compiled, tree.map(lambda leaf: leaf[0], starts), self._seed())
        modes = [self._climbed(ascent, tree.map(lambda leaf, k=k: leaf[k], starts)) for k in range(number)]
        best = max(modes, key=lambda mode: mode.log_posterior if math.isfinite(mode.log_posterior) else -math.inf)
        curvature = sum(mode.negative_hessian for mode in modes) / number
        assert isinstance(curvature, Tensor)
        best = best._replace(negative_hessian=curvature)
        whitened = Whitened(self.compiled, best, self.compiled.num_data)
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

    def _climbed(self, ascent: Ascent, start: Position) -> Mode:
        """By Newton's method where it applies; otherwise by Adam, its units measured twice."""
        if (found := self._newton(start)) is not None:
            rows, rest = self._curvature(found)
            with torch.no_grad():
                value = sum(float(self.compiled(found, batch)) for batch in self._some_rows(CURVATURE_ROWS)[:1])
            return Mode(found, value, True, 0, rows + rest)
        first = self._ascended(ascent, start, self.most_ascent // 4)
        last = self._ascended(ascent, first.position, self.most_ascent - first.num_steps)
        rows, rest = self._curvature(last.position)
        return Mode(last.position, last.log_posterior, last.converged, first.num_steps + last.num_steps, rows + rest)

    def _newton(self, start: Position) -> Position | None:
        """The mode above a start where rows enough to tell it can be looked at, and the curvature is positive."""
        compiled, num_data = self.compiled, self.compiled.num_data
        most = min(num_data, NEWTON_NUMBERS // self.size, max(NEWTON_ROWS, 8 * self.size))
        if self.splits and most < min(num_data, 4 * self.size):
            return None
        batches = self._some_rows(most)
        share = num_data / sum(len(batch.indices) for batch in batches)
        target = with_all_rows(compiled)
        terms = [lambda at, batch=batch: share * target(at, batch) / batch.scale for batch in batches]
        rows, rest = self._curvature(start)
        units, _ = Spectrum.of(rows + rest).factors()

        def whole(position: Position) -> Tensor:
            return tree.ravel(anchor_at(compiled, self.blocks, position).gradient)

        try:
            return ascend(terms, start, units, whole if share > 1 else None)
        except RuntimeError as error:  # LinAlgError, or an operation whose gradient cannot be differentiated
            logger.info("Newton's method gives up: %s.", first_line(error))
            return None

    def _ascended(self, ascent: Ascent, start: Position, most_steps: int) -> Climb:
        """In units of what a row tells, or of the prior where it tells more."""
        rows, rest = self._curvature(start)
        units, _ = Spectrum.of(rows / self.compiled.num_data + rest).factors()
        return ascent.climb(start, tree.unravel(units, tree.shapes(start)), most_steps)

    def _curvature(self, position: Position) -> tuple[Tensor, Tensor]:
        """The diagonal at a position: that of the rows, and the rest, `(d,)` each."""
        compiled, num_data = self.compiled, self.compiled.num_data
        rows = torch.zeros_like(tree.ravel(position))
        if self.splits:
            size = min(FISHER_ROWS, compiled.batch_size or FISHER_ROWS, max(1, num_data // 2))
            generator = torch.Generator().manual_seed(self._seed())
            one = tree.map(lambda leaf: leaf.unsqueeze(0), position)
            variance = noise_variance(
                compiled, compiled.gathered, num_data, size, (), one, generator, repeats=FISHER_BATCHES
            )
            rows = tree.ravel(variance) * (num_data * size * (max(1, num_data - 1) / max(1, num_data - size)))
            products = Products([compiled.log_prior], position)
        else:
            batch = compiled.batch()
            products = Products([lambda at: compiled(at, batch)], position)
        found = rows
        for _ in range(2):  # the first tells the units
            units, _ = Spectrum.of(found).factors()
            found = rows + diagonal(products, units, self.generator).nan_to_num(0.0, 0.0, 0.0)
        return rows, found - rows

    def curvatures(self, whitened: Whitened, vectors: Tensor) -> Tensor:
        """The largest curvature per datum, in size, at a few vectors `(n, d)`, as some rows show it."""
        found = []
        batches = self._some_rows(max(self.block_rows, min(CURVATURE_ROWS, CURVATURE_NUMBERS // self.size)))
        number = sum(len(batch.indices) for batch in batches)
        most = 4 if self.size <= LARGE else 1
        for vector in vectors[:: -(-len(vectors) // most)]:
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

    def _some_rows(self, most: int) -> list[Batch]:
        """So many at most, in blocks."""
        compiled = self.compiled
        if not self.splits:
            return [compiled.batch()]
        rows = torch.randint(compiled.num_data, (most,), generator=self.generator, device="cpu")
        if compiled.num_data <= most:
            rows = torch.arange(compiled.num_data, device="cpu")
        return [compiled.batch(block) for block in rows.split(self.block_rows)]

    def explored(
        self,
        kernel: Kernel,
        number: int,
        every: int,
        start: Position,
        seeds: Sequence[int],
        frame: Frame,
        centers: Tensor,
    ) -> Learned | None:
        """As `Dense.explored`; means and variances stay where the window is too short to tell them."""
        assert frame.whitened is not None
        seen = _Seen(frame.whitened, centers, number, self.generator)
        found = explore(self.compiled, kernel, number, every, start, seeds, frame, seen)
        if found is None:
            return None
        traces = found[""][number // 3 :] / self.sd
        time = float(torch.maximum(autocorrelation_times(traces), autocorrelation_times(traces**2)).max())
        spread = torch.ones_like(centers[0])
        if len(traces) >= LONG * time:
            centers, variances = seen.moments()
            spread = _shrunk(variances / self.sd**2, len(traces) * traces.shape[1] / time)
        return Learned(torch.stack(seen.snapshots), centers, spread.sqrt(), time)

    def strength(self, variance: Position) -> float:
        """V where it is large: the largest of many estimates would be one that is wrong."""
        values = tree.ravel(variance)
        return float(values[:: max(1, len(values) // 10**5)].double().quantile(0.99))

    def settling(self, steps: int, thinning: int) -> int:
        """As `Dense.settling`; at most as many as without tuning where the thinning is below the autocorrelation."""
        return min(steps, max(SETTLING * thinning, self.num_samples * thinning // 2))

    def _seed(self) -> int:
        return int(torch.randint(2**31, (), generator=self.generator, device="cpu"))


class _Seen:
    """What is kept of positions as they come: sums, a few coordinates, and some positions whole.

    Args:
        whitened: the coordinates.
        centers: of the chains, one after another, `(centers, d)`.
        number: of positions that each chain will keep.
        generator: of the coordinates that are traced.
    """

    def __init__(self, whitened: Whitened, centers: Tensor, number: int, generator: torch.Generator) -> None:
        self.whitened, self.centers = whitened, centers
        size = centers.shape[1]
        self.traced = torch.randperm(size, generator=generator, device="cpu")[:TRACED].to(centers.device)
        self.first, self.last, self.count = number // 3, number - 1, 0
        self.sums = torch.zeros_like(centers)
        self.squares = torch.zeros_like(centers[0])
        self.number = torch.zeros(len(centers), dtype=torch.long)
        self.every = max(1, number * size // BLOCK_NUMBERS)
        self.snapshots: list[Tensor] = []

    def __call__(self, positions: Position) -> Position:
        """Of positions `(n, chains, *site)`, the traces, `(n, chains, traced)`."""
        length = len(next(iter(positions.values())))
        traces = []
        for place in range(length):
            vectors = self.whitened.flat(self.whitened.coordinates(tree.map(lambda leaf, k=place: leaf[k], positions)))
            if self.first <= self.count:
                self._add(vectors)
            if self.count == self.last or (self.first <= self.count and (self.last - self.count) % self.every == 0):
                self.snapshots.append(vectors)
            traces.append(vectors[:, self.traced])
            self.count += 1
        return {"": torch.stack(traces)}

    def _add(self, vectors: Tensor) -> None:
        for chain, vector in enumerate(vectors):
            group = chain % len(self.centers)
            change = vector - self.centers[group]
            self.sums[group] += change
            self.squares += change**2
            self.number[group] += 1

    def moments(self) -> tuple[Tensor, Tensor]:
        """Means of the chains of each center, `(centers, d)`, and variances around them, `(d,)`."""
        number = self.number.to(self.sums).clamp(min=1).unsqueeze(1)
        means = self.sums / number
        variances = (self.squares - (number * means**2).sum(0)) / float(number.sum())
        return self.centers + means, variances.clamp(min=0)


def _shrunk(variances: Tensor, effective: float) -> Tensor:
    """Variances that would be 1 if coordinates were right, shrunk towards 1 by the share that noise explains."""
    noise = float((2 * variances**2).mean()) / effective
    distance = float(((variances - 1) ** 2).mean())
    share = min(1.0, noise / distance) if distance > 0 else 1.0
    return share + (1 - share) * variances
