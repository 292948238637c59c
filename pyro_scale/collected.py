"""Which positions of a run are kept, and those kept so far."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pyro_scale.errors import ArgumentError
from pyro_scale.moments import Moments, RunningMoments
from pyro_scale.types import Position


@dataclass(frozen=True)
class Plan:
    """How long to run and what to keep.

    Attributes:
        num_samples, num_chains: draws kept by a chain, and how many chains.
        warmup_steps: steps before the first draw can be kept.
        thinning: steps from one kept draw to the next; on average, where draws are kept from some steps only.
        keep: sites whose draws are kept.
        save_warmup: whether every `thinning`-th position of the warm-up is kept too.
        pilot_steps: that were taken before, to choose what the run needs.
        sampling: of a step, counted from 0, whether the position that it leads to may be a draw; None for all. The
            draws are spread evenly over these steps after warm-up.
        traced: whether the run is a fit: the log posterior of every step is kept, and no step follows the last.

    Raises:
        ArgumentError: there are fewer such steps than draws.
    """

    num_samples: int
    warmup_steps: int
    thinning: int
    num_chains: int
    keep: tuple[str, ...]
    save_warmup: bool = False
    sampling: Callable[[int], bool] | None = None
    pilot_steps: int = 0
    traced: bool = False

    def __post_init__(self) -> None:
        if len(self.sampling_steps) < self.num_samples:
            raise ArgumentError(
                f"The schedule of step_size samples in {len(self.sampling_steps)} of the "
                f"{self.num_samples * self.thinning} steps after warm-up, too few for num_samples={self.num_samples}. "
                f"Raise thinning, which is {self.thinning}, or lower the schedule's exploration or num_samples."
            )

    @property
    def num_steps(self) -> int:
        """Steps a chain takes in all."""
        return self.warmup_steps + self.num_samples * self.thinning

    @property
    def final_step(self) -> int:
        """Number of the last step, counted from 0: behind those of the chain there is one that only evaluates."""
        return self.num_steps - self.traced

    @cached_property
    def sampling_steps(self) -> Sequence[int]:
        """Numbers of steps after which the position may be a draw."""
        after_warmup = range(self.warmup_steps + 1, self.num_steps + 1)
        if self.sampling is None:
            return after_warmup
        return [step for step in after_warmup if self.sampling(step - 1)]

    @cached_property
    def kept_steps(self) -> Sequence[int]:
        """Numbers of steps after which the position is kept, in order."""
        warmup = range(self.thinning, self.warmup_steps + 1, self.thinning) if self.save_warmup else ()
        available = len(self.sampling_steps)
        places = (available * number // self.num_samples - 1 for number in range(1, self.num_samples + 1))
        return [*warmup, *(self.sampling_steps[place] for place in places)]

    def kept_within(self, first: int, last: int) -> Sequence[int]:
        """Those of `kept_steps` beyond `first`, up to and with `last`."""
        return self.kept_steps[bisect_right(self.kept_steps, first) : bisect_right(self.kept_steps, last)]

    def kept_after(self, step: int) -> bool:
        """Whether the position after this many steps is kept."""
        return bool(self.kept_within(step - 1, step))


class Snapshot(NamedTuple):
    """What is kept of states: leaves have leading axes, of the times where there are several, and of the chains.

    Attributes:
        positions: `(..., num_chains, *site)`.
        kinetic: mean square of the momenta of each site, `(..., num_chains, num_sites)`; `()` for a kernel without.
    """

    positions: Position
    kinetic: Tensor | tuple[()]

    @classmethod
    def of(cls, state: Any) -> Snapshot:
        """Of a kernel's state, with a leading chain axis."""
        momenta = [leaf.reshape(len(leaf), -1) for leaf in getattr(state, "momentum", {}).values()]
        # a norm, since squares of large momenta would be one more copy of them
        means = [torch.linalg.vector_norm(leaf, dim=1) ** 2 / max(1, leaf.shape[1]) for leaf in momenta]
        return cls(state.position, torch.stack(means, 1) if means else ())


class Taken(NamedTuple):
    """What steps leave beside the state.

    Attributes:
        log_posterior: where each step started, `(num_steps, num_chains)`.
        clamped: as in `Info`, `(num_steps, num_chains)`.
        kept: after how many of these steps states were kept, in order.
        snapshots: those, with a leading axis of as many; None without.
    """

    log_posterior: Tensor
    clamped: Tensor
    kept: Sequence[int] = ()
    snapshots: Snapshot | None = None


class Kept(NamedTuple):
    """Draws, one after another.

    Attributes:
        positions: `(n, num_chains, *site)`.
        kinetic: as in `Snapshot`.
        log_posterior: `(n, num_chains)`.
    """

    positions: Position
    kinetic: Tensor | tuple[()]
    log_posterior: Tensor


class Collected:
    """Positions kept so far, with their log posterior; each waits for it until the next step has computed it.

    Args:
        plan: which positions are kept.
        num_steps: steps taken before.
        waiting: the state after them, with a leading axis of length 1, if it is kept.
        moments: of sites that are not kept.
        values: of a block of positions, what is kept of it, at once; None for the positions themselves.
    """

    def __init__(
        self,
        plan: Plan,
        num_steps: int = 0,
        waiting: Snapshot | None = None,
        moments: RunningMoments | None = None,
        values: Callable[[Position], Position] | None = None,
    ) -> None:
        self.plan = plan
        self.moments = moments
        self.values = values
        self.draws: list[Kept] = []
        self.warmup: list[Position] = []
        self.waiting = self._kept(waiting)
        self.num_steps = num_steps
        self.num_draws = 0
        self.clamped = torch.zeros(plan.num_chains, dtype=torch.long)
        self.trace: list[Tensor] = []

    def took(self, taken: Taken, finite: int) -> list[str]:
        """Steps were taken, of which the first `finite` started where the log posterior is finite.

        Returns:
            Names of rows' own sites with a value that is not finite at a position that would be kept.
        """
        before = self.num_steps
        taken = taken._replace(snapshots=self._kept(taken.snapshots))
        if self.plan.traced:
            self.trace.append(taken.log_posterior[:finite].cpu())
        if self.waiting is not None and finite > 0:
            if bad := self._settle([before], self.waiting, taken.log_posterior[:1]):
                return bad
            self.waiting = None
        settled, reached = bisect_left(taken.kept, finite), bisect_right(taken.kept, finite)
        if settled:
            numbers = list(taken.kept[:settled])
            steps = [before + number for number in numbers]
            if bad := self._settle(steps, _between(taken.snapshots, 0, settled), taken.log_posterior[numbers]):
                return bad
        if reached > settled:
            self.waiting = _between(taken.snapshots, settled, reached)
        moved = min(finite, self.plan.num_steps - before)
        self.num_steps = before + moved
        self.clamped += taken.clamped[:moved].sum(0).cpu()
        return []

    def _kept(self, found: Snapshot | None) -> Snapshot | None:
        return found if found is None or self.values is None else found._replace(positions=self.values(found.positions))

    def _settle(self, steps: Sequence[int], snapshots: Snapshot, log_posterior: Tensor) -> list[str]:
        """States after these steps, and the values there, which are finite; names as above."""
        positions, kinetic = snapshots
        first_draw, last = bisect_right(steps, self.plan.warmup_steps), len(steps)
        bad: list[str] = []
        if self.moments is not None:
            for place in range(first_draw, last):
                if bad := self.moments.add({name: leaf[place] for name, leaf in positions.items()}):
                    self.num_steps, last = steps[place], place
                    break
            positions = {name: leaf for name, leaf in positions.items() if name not in self.moments.left_out}
        if first_draw > 0:
            self.warmup.append(_between(positions, 0, first_draw))
        if last > first_draw:  # in one go: Ctrl-C may come between any two statements
            self.draws.append(Kept(*_between((positions, kinetic, log_posterior), first_draw, last)))
            self.num_draws += last - first_draw
        return bad


def _between(tensors: Any, first: int, last: int) -> Any:
    return pytree.tree_map(lambda leaf: leaf[first:last], tensors)


class Ending(NamedTuple):
    """Why a run ended early: by a value that is not finite, by an error in the model or callback, or by a wish."""

    reason: str
    failed: bool = False
    error: Exception | None = None


class Chains(NamedTuple):
    """What a run leaves.

    Attributes:
        draws: site -> constrained values, `(num_chains, num_samples, *site)`.
        log_posterior: of each draw on the batch of the step after it, `(num_chains, num_samples)`, in nats.
        kinetic: site -> mean square of its momenta at each draw, `(num_chains, num_samples)`; empty without momenta.
        warmup: as `draws`, for positions kept in warm-up; None unless asked for.
        moments: site with a value a row -> moments over the draws, where these are not kept.
        num_steps: steps taken by a chain.
        clamped: coordinates whose injected noise was clamped at 0, summed over steps, by chain.
        how: how steps ran, as "captured".
        seconds: of capture and of sampling.
        step_size: of the last step.
        ending: why the run ended early, if it did.
    """

    draws: dict[str, Tensor]
    log_posterior: Tensor
    kinetic: dict[str, Tensor]
    warmup: dict[str, Tensor] | None
    moments: dict[str, Moments]
    num_steps: int
    clamped: Tensor
    how: str
    seconds: dict[str, float]
    step_size: float
    ending: Ending | None
