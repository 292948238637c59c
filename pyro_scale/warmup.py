r"""Warm-up that adapts: coordinates, control variates, step size and thinning, from the mode and a pilot run.

1. Newton's method climbs to the modes above a few starts; the curvature there whitens the coordinates.
2. Minibatches get control variates at the mode, and what noise they leave is measured: V.
3. `law_of` says what step size keeps the sds of a normal posterior within tolerance, V included.
4. A pilot run shows how far the posterior is from that normal. Up to 300 coordinates the inverse of the mean curvature
   at its draws (absolute, as in Betancourt (2013)), which few draws tell, is the covariance of the coordinates; what
   the draws' own covariance has beyond that is learned as far as noise could not explain it (Ledoit & Wolf (2004), here
   with the variances of a normal). Its mean is the anchor, its autocorrelation says how many steps bring a new draw.

Where there is no mode, as where a group sd goes to 0, the first coordinates are those of the curvature at the start.

References:
    Baker, Fearnhead, Fox & Nemeth (2019), Control variates for stochastic gradient MCMC, Statistics and Computing.
    Betancourt (2013), A general metric for Riemannian manifold Hamiltonian Monte Carlo, GSI.
    Ledoit & Wolf (2004), A well-conditioned estimator for large-dimensional covariance matrices, J. Multivariate
    Analysis.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pyro_scale.checks import derived_seeds
from pyro_scale.compile import CompiledModel
from pyro_scale.dense import SETTLING, Learned
from pyro_scale.gradient import ControlVariate, Frame, anchor_at, without_all_rows
from pyro_scale.gradient_noise import noise_variance
from pyro_scale.held import in_memory
from pyro_scale.matrices import matrices_of
from pyro_scale.progress import Reporter
from pyro_scale.step_sizes import LARGEST, Suited, suited
from pyro_scale.types import Anchor, Kernel, Position
from pyro_scale.whitening import divided

WINDOWS = (30, 30, 60)
"""Lengths of the pilot's windows, in autocorrelation times: to reach the posterior, to learn it, to time its draws."""
HARDEST_CURVATURE = 2.0
"""The step size must suit places whose curvature is so many times that of the normal, or what is seen among draws."""
USUAL = 0.75
"""The share of the first starts whose curvature counts: they are draws of the normal, which may have gone astray."""
NOISE_POSITIONS = 16
MOST_HALVINGS = 8
SHORTEST = 20
"""A window of fewer steps teaches nothing."""


class Tuned(NamedTuple):
    """What warm-up chose.

    Attributes:
        kernel: with its step size, and V where it takes one.
        frame: coordinates, and anchors of all chains.
        start: of all chains, unconstrained.
        settling: steps to the first draw.
        thinning: steps from draw to draw.
        pilot_steps: taken by each chain of the pilot.
        told: what was found, in numbers.
    """

    kernel: Kernel
    frame: Frame
    start: Position
    settling: int
    thinning: int
    pilot_steps: int
    told: dict[str, Any]


class Tuner:
    """Warm-up under way; vectors `(..., d)` are in the whitened coordinates of the moment.

    Args:
        compiled: the model of the run.
        kernel: whose step size is None.
        starts: of all chains, unconstrained; modes are sought above them.
        seed: of the pilot run.
        tolerance: by how much sds may be wrong, relative to themselves.
        num_samples: draws of a chain.
        reporter: is told of the steps.
    """

    def __init__(
        self,
        compiled: CompiledModel,
        kernel: Kernel,
        starts: Position,
        seed: int,
        tolerance: float,
        num_samples: int,
        reporter: Reporter,
    ) -> None:
        *seeds, last = derived_seeds(seed, 101)
        self.held = in_memory(compiled, last, reporter.seek)
        self.compiled = self.held.compiled
        self.kernel: Any = kernel
        self.tolerance = tolerance
        self.num_samples = num_samples
        self.reporter = reporter
        self.num_chains = len(next(iter(starts.values())))
        self.seeds = iter(seeds)
        self.generator = torch.Generator().manual_seed(next(self.seeds))
        self.sd = math.sqrt(cast(float, kernel.temperature) / self.compiled.num_data)
        size = compiled.batch_size
        self.noisy = size is not None and size < compiled.num_data
        self.local = {} if size is None else compiled.local
        self.epoch, self.uneven = self.held.epoch
        self.largest_step = min(LARGEST, getattr(kernel, "max_step_size", LARGEST))
        self.matrices: Any = matrices_of(self.compiled, self.sd, self.generator, num_samples)
        self.choices = self.matrices.choices if self.noisy and self.held.whole else (False,)
        modes, best = self.matrices.ascended(starts, reporter.seek)
        self.num_modes = len(modes)
        self.whitened = self.matrices.whitened(best)
        self.centers = torch.stack([self._vector(mode.position) for mode in modes or [best]])
        self.anchored = self.choices[-1]
        self.anchors: list[Anchor] = []  # at the centers, once they are asked for
        self.slower = self.matrices.slower  # than the normal's the chains of the pilot are, by this factor

    def tuned(self, most_steps: int | None) -> Tuned:
        """Runs the pilot, and chooses."""
        at, taken = self._around(self.matrices.chains), 0
        draws = at.unsqueeze(0)
        self._choose(draws, USUAL)
        for length in WINDOWS:
            num_steps = min(self.matrices.most_steps, math.ceil(length * self.law.autocorrelation_time))
            if most_steps is not None:
                num_steps = min(num_steps, most_steps * length // sum(WINDOWS))
            if num_steps < SHORTEST:
                continue
            every = math.ceil(num_steps / self.matrices.most_kept)
            num_steps -= num_steps % every
            least = taken + num_steps + self.num_samples
            self.reporter.expect(max(self.reporter.num_steps, least), taken)
            draws = self._moved(self._run(at, num_steps, every), every)
            taken += num_steps
            at = draws[-1]
            self._choose(draws)
        start = self._around(self.num_chains) if taken == 0 else self._picked(draws)
        steps = self.law.autocorrelation_time * self.slower
        thinning = min(self.matrices.most_thinning, math.ceil(steps))
        told = {
            "modes": self.num_modes,
            "autocorrelation_time": steps,
            "gradient_noise": self.noise,
            "control_variates": self.anchored,
            "largest_curvature": self.hardest,
            "pilot_steps": taken,
        }
        kernel, frame = self.held.of_run(self.chosen, self._frame(self.num_chains))
        return Tuned(
            kernel=kernel,
            frame=frame,
            start=self._position(start),
            settling=self.matrices.settling(SETTLING * math.ceil(steps), thinning),
            thinning=thinning,
            pilot_steps=taken,
            told=told,
        )

    def _vector(self, position: Position) -> Tensor:
        return self.whitened.flat(self.whitened.coordinates(position))

    def _position(self, vectors: Tensor) -> Position:
        return self.whitened.position(self.whitened.unflat(vectors))

    def _around(self, number: int) -> Tensor:
        """A draw of the normal around the center of each chain, `(number, d)`."""
        centers = self.centers[self._group(number)]
        noise = torch.randn(centers.shape, generator=self.generator, dtype=torch.float64, device="cpu")
        found: Tensor = centers + self.matrices.scatter * self.sd * noise.to(centers)
        return found

    def _picked(self, draws: Tensor) -> Tensor:
        """For every chain one of the draws `(n, pilot chains, d)` of a pilot chain that started at the same mode."""
        when = torch.randint(len(draws), (self.num_chains,), generator=self.generator, device="cpu")
        alike = draws.shape[1] // len(self.centers) * len(self.centers)
        return draws[when, torch.arange(self.num_chains, device="cpu") % alike]

    def _group(self, number: int) -> Tensor:
        """Which center each of so many chains has."""
        return torch.arange(number, device="cpu") % len(self.centers)

    def _frame(self, number: int) -> Frame:
        """The coordinates, with anchors for so many chains."""
        if not self.anchored:
            return Frame(self.whitened)
        if not self.anchors:
            at, blocks = map(self.whitened.unflat, self.centers), self.matrices.blocks
            self.anchors = [anchor_at(self.whitened, blocks, each, self.local) for each in at]
        chosen = [self.anchors[group] for group in self._group(number).tolist()]
        return Frame(self.whitened, pytree.tree_map(lambda *leaves: torch.stack(leaves), *chosen))

    def _choose(self, draws: Tensor, quantile: float = 1.0) -> None:
        """The step size, and V, from curvature and noise at draws `(n, pilot chains, d)`."""
        curvatures: Tensor = self.matrices.curvatures(self.whitened, self._some(draws).flatten(0, 1))
        self.hardest = max(HARDEST_CURVATURE, float(curvatures.quantile(quantile)))
        found = [self._suited(draws, anchored) for anchored in self.choices]
        # a control variate is paid for by a second gradient
        best, self.anchored = min(found, key=lambda each: (1 + each[1]) * each[0].law.autocorrelation_time)
        self.chosen, self.law, self.noise = best

    def _suited(self, draws: Tensor, anchored: bool) -> tuple[Suited, bool]:
        """The kernel with the step size that suits minibatches with control variates, or without."""
        variance: Position = self._variance(draws, anchored) if self.noisy else {}
        noise = self.matrices.strength(variance) / self.sd**2 if variance else 0.0
        limits = self.epoch, self.largest_step, self.uneven
        return suited(self.kernel, self.tolerance / 2, self.hardest, variance, noise, *limits), anchored

    def _some(self, draws: Tensor) -> Tensor:
        """Draws of all chains at a few times, as many of each center's chains, `(n, chains, d)`."""
        when = torch.linspace(0, len(draws) - 1, max(1, NOISE_POSITIONS // draws.shape[1]), device="cpu").long()
        return draws[when, : draws.shape[1] // len(self.centers) * len(self.centers)]

    def _variance(self, draws: Tensor, anchored: bool) -> Position:
        """V at a few draws."""
        at = self._some(draws).flatten(0, 1)[: self.matrices.noise_positions]
        compiled, generator = self.compiled, torch.Generator().manual_seed(next(self.seeds))
        size, positions = compiled.batch_size, self.whitened.unflat(at)
        assert size is not None
        centers = self.whitened.unflat(self.centers[self._group(len(at))])
        anchors = without_all_rows(centers, self.local) if anchored else ()
        target = ControlVariate(self.whitened) if anchored else self.whitened
        repeats = self.matrices.noise_repeats
        return noise_variance(
            target, compiled.gathered, compiled.num_data, size, anchors, positions, generator, repeats, self.local
        )

    def _run(self, at: Tensor, num_steps: int, every: int) -> Learned:
        """A window of the pilot, with smaller steps where a chain diverges."""
        start = self._position(at)
        for _ in range(MOST_HALVINGS):
            frame = self._frame(len(at))  # a smaller step may do without control variates
            seeds = (next(self.seeds), next(self.seeds))
            number = num_steps // every
            learned = self.matrices.explored(
                self.chosen, number, every, start, seeds, frame, self.centers, self.reporter
            )
            if learned is not None:
                return cast(Learned, learned)
            self.largest_step = self.chosen.step_size / 2
            self._choose(at.unsqueeze(0))
        raise self.matrices.astray(self.chosen.step_size)

    def _moved(self, learned: Learned, every: int) -> Tensor:
        """Takes coordinates, centers and autocorrelation from a window of the pilot; its draws in the new ones."""
        self.slower = max(self.matrices.slower, learned.time * every / self.law.autocorrelation_time)
        origin, self.anchors = learned.centers[0], []
        self.whitened = self.whitened.moved(self.whitened.unflat(origin), learned.spread)
        self.centers, draws = (divided(each - origin, learned.spread) for each in (learned.centers, learned.draws))
        return draws
