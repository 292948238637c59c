"""What warm-up does for models with values of rows in minibatches: matrices of what rows share, blocks of the rows."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from pyro_scale import tree
from pyro_scale.climbs import distinct
from pyro_scale.compile import CompiledModel
from pyro_scale.conditional import Conditional, Layout
from pyro_scale.data import names_of
from pyro_scale.dense import MOST_THINNING, PILOT_CHAINS, SETTLING, Ascended, Learned, around_means
from pyro_scale.errors import UntunedError
from pyro_scale.gradient import Frame
from pyro_scale.mode import DENSE_LIMIT, Mode, newton
from pyro_scale.pilot import explore
from pyro_scale.products import Products, largest_eigenvalue
from pyro_scale.progress import Reporter
from pyro_scale.row_coordinates import RowCoordinates
from pyro_scale.seen import SNAPSHOT_NUMBERS, Seen
from pyro_scale.spread import shrunk_covariance
from pyro_scale.starts import LinAlgError
from pyro_scale.types import Kernel, Position

logger = logging.getLogger("pyro_scale")

MOST_CLIMBS = 4
MOST_NUMBERS = 2**24
"""Of the matrices by which rows follow what they share."""
FEW = 4
"""Positions whose curvature is looked at."""
INDEPENDENT = 200
"""Independent values of a row that a chain is to have at least, where it has as many draws."""


class Rowwise:
    """Of models with values of rows in minibatches; attributes and methods are those of `Dense`.

    Args:
        compiled: the model.
        sd: of the coordinates, where they are right.
        generator: of what is random.
        num_samples: draws of a chain.
    """

    most_steps: ClassVar[int] = 100_000
    most_kept: ClassVar[int] = 2000
    most_thinning: ClassVar[int] = MOST_THINNING
    chains: ClassVar[int] = PILOT_CHAINS
    scatter: ClassVar[float] = 1.0
    choices: ClassVar[Sequence[bool]] = (True,)
    noise_positions: ClassVar[int] = 16
    noise_repeats: ClassVar[int | None] = None

    def __init__(self, compiled: CompiledModel, sd: float, generator: torch.Generator, num_samples: int) -> None:
        self.compiled = compiled
        self.sd = sd
        self.generator = generator
        self.temperature = sd**2 * compiled.num_data
        self.blocks = [compiled.batch()]
        self.num_samples = num_samples
        self.share = min(1.0, INDEPENDENT / num_samples)
        self.epoch = compiled.num_data / (compiled.batch_size or compiled.num_data)
        self.slower = max(1.0, self.epoch * self.share)  # a row moves in one step of an epoch
        self.coordinates: RowCoordinates
        layout = Layout(compiled.latent, compiled.local)
        size = sum(shape.numel() for name, shape in compiled.latent.items() if name not in compiled.local)
        numbers = compiled.num_data * layout.k * (layout.k + size)
        if size == 0:
            raise self._untuned("there is nothing that rows share")
        if size > DENSE_LIMIT or numbers > MOST_NUMBERS:
            raise self._untuned(f"{size} coordinates that all rows share, and {layout.k} a row, are too many")

    def ascended(self, starts: Position, seek: Callable[[], None]) -> Ascended:
        """The modes of what is shared, rows integrated out, above the first starts; rows at their modes there.

        Raises:
            UntunedError: there is none.
        """
        layout = Layout(self.compiled.latent, self.compiled.local)
        climbs: list[tuple[Mode, Conditional]] = []
        for chain in range(min(MOST_CLIMBS, len(next(iter(starts.values()))))):
            seek()
            start = tree.map(lambda leaf, k=chain: leaf[k], starts)
            conditional = Conditional(self.compiled, self.temperature, layout.matrix(start))
            shared = {name: start[name] for name in conditional.shapes}
            try:
                climbs.append((newton(conditional, self.blocks, shared), conditional))
            except LinAlgError:
                logger.info("Start %d is left out: values of rows have no mode there.", chain)
        if not climbs:
            raise self._untuned("has no mode at the starts, given what rows share")
        modes = distinct([mode for mode, _ in climbs])
        if not modes:
            raise self._untuned("leaves a posterior of what rows share, integrated over it, that has no mode")
        best = modes[0]
        conditional = next(each for mode, each in climbs if mode is best)
        curvature = torch.stack([mode.negative_hessian for mode in modes]).mean(0)
        try:
            self.coordinates = RowCoordinates(conditional, best._replace(negative_hessian=curvature))
        except LinAlgError:
            raise self._untuned("has no curvature at its mode") from None
        still = tree.map(torch.zeros_like, tree.map(lambda leaf: leaf[0], starts))

        def whole(mode: Mode) -> Mode:
            at = {**still, **self.coordinates.whitened.coordinates(mode.position)}
            return mode._replace(position=self.coordinates.position(at))

        return Ascended([whole(mode) for mode in modes], whole(best))

    def whitened(self, best: Mode) -> RowCoordinates:
        """Coordinates around the best mode."""
        return self.coordinates

    def curvatures(self, whitened: RowCoordinates, vectors: Tensor) -> Tensor:
        """The largest curvature per datum, in size, at a few vectors `(n, d)`."""
        batch, found = self.blocks[0], []
        for vector in vectors[:: -(-len(vectors) // FEW)]:
            start = torch.randn(vector.shape, generator=self.generator, dtype=torch.float64, device="cpu")

            def per_datum(at: Position) -> Tensor:
                return whitened(at, batch) / self.compiled.num_data

            try:
                size, _ = largest_eigenvalue(Products([per_datum], whitened.unflat(vector)), start.to(vector))
            except LinAlgError:
                continue
            if 0 < size < math.inf:
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
        """As `Dense.explored`, of what is shared; coordinates of the rows stay."""
        assert isinstance(frame.whitened, RowCoordinates)
        size, room = frame.whitened.num_shared, SNAPSHOT_NUMBERS // self.chains
        seen = Seen(frame.whitened, centers, number, self.generator, torch.arange(size, device=centers.device), room)
        found = explore(self.compiled, kernel, number, every, start, seeds, frame, reporter, seen)
        if found is None:
            return None
        around = around_means(found[""][number // 3 :], len(centers), self.sd)
        if around is None:
            return None
        try:
            spread = torch.linalg.cholesky(shrunk_covariance(around.scaled.flatten(0, 1), around.effective))
        except LinAlgError:
            raise self._untuned("what rows share does not move in all directions") from None
        centers = torch.cat([around.means, torch.zeros_like(centers[:, size:])], 1)
        return Learned(torch.stack(seen.snapshots), centers, spread, around.time)

    def astray(self, step_size: float) -> Exception:
        """As `Dense.astray`; the model may do untuned."""
        return self._untuned(f"chains of the pilot do not stay finite at a step size of {step_size:g}")

    def strength(self, variance: Position) -> float:
        """V where it is largest.

        Raises:
            UntunedError: control variates leave as much as minibatches without them would have, whose rows' gradients
                vary as much as their curvature: coordinates to first order are none for this posterior.
        """
        found = max(float(leaf.max()) for leaf in variance.values() if leaf.numel() > 0)
        noise = found * self.compiled.num_data / self.epoch  # 1 where a row's gradient varies as its curvature says
        if not noise <= 1:
            raise self._untuned(
                "follows what rows share too far from a straight line, as where a group sd may be near 0: control "
                f"variates leave {noise:.1f} times the noise of minibatches"
            )
        return found

    def _untuned(self, why: str) -> UntunedError:
        return UntunedError(
            f"site {names_of(list(self.compiled.local))} has a value for each row of the minibatches, and {why}. "
            "Standardise covariates, or set the kernel's step_size, as to 0.01; where all rows can be afforded at "
            "every step, batch_size=None is tuned"
        )

    def settling(self, steps: int, thinning: int) -> int:
        """As `Dense.settling`, so that rows settle too."""
        return min(round(steps / self.share), max(SETTLING * thinning, self.num_samples * thinning // 2))
