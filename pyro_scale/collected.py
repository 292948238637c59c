"""Which positions of a run are kept, those kept so far, and the moments of what is too large to keep."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_scale.errors import ArgumentError
from pyro_scale.types import Position


@dataclass(frozen=True)
class Plan:
    """How long to run and what to keep.

    Attributes:
        num_samples: draws kept by a chain.
        warmup_steps: steps before the first draw can be kept.
        thinning: steps from one kept draw to the next; on average, where draws are kept from some steps only.
        num_chains: chains.
        keep: sites whose draws are kept.
        save_warmup: whether every `thinning`-th position of the warm-up is kept too.
        sampling: of a step, counted from 0, whether the position that it leads to may be a draw; None for all. The
            draws are spread evenly over these steps after warm-up.

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


class Taken(NamedTuple):
    """What steps leave beside the state.

    Attributes:
        log_posterior: where each step started, `(num_steps, num_chains)`.
        clamped: as in `Info`, `(num_steps, num_chains)`.
        kept: after so many of these steps, the position `(num_chains, *site)`.
    """

    log_posterior: Tensor
    clamped: Tensor
    kept: list[tuple[int, Position]]


class Moments(NamedTuple):
    """Mean and standard deviation over the draws of a chain, `(num_chains, *site)`; the latter NaN for one draw."""

    mean: Tensor
    sd: Tensor


class RunningMoments:
    """Mean and standard deviation of functions of positions that are not kept: Welford (1962).

    Args:
        values: positions of all chains -> name -> `(num_chains, ...)`.
        kept: names whose draws are kept, so that their moments need not be.
        left_out: sites of a position that are not needed for anything else.
    """

    def __init__(
        self, values: Callable[[Position], dict[str, Tensor]], kept: Collection[str], left_out: Collection[str]
    ) -> None:
        self.values = values
        self.kept = kept
        self.left_out = left_out
        self.count = 0
        self.mean: dict[str, Tensor] = {}
        self.squares: dict[str, Tensor] = {}

    def add(self, position: Position) -> list[str]:
        """Takes one more position of every chain into account, unless some values are not finite: their names."""
        values, count = self.values(position), self.count + 1
        if bad := [name for name, value in values.items() if not torch.isfinite(value).all()]:
            return bad
        mean, squares = {}, {}
        for name, value in values.items():
            if name in self.kept:
                continue
            away = value - self.mean.get(name, 0)
            mean[name] = self.mean.get(name, 0) + away / count
            squares[name] = self.squares.get(name, 0) + away * (value - mean[name])
        # in one go: Ctrl-C may come between any two statements
        self.count, self.mean, self.squares = count, mean, squares
        return []

    def result(self) -> dict[str, Moments]:
        """Name -> moments so far."""
        degrees = self.count - 1 if self.count > 1 else math.nan
        return {name: Moments(mean, (self.squares[name] / degrees).sqrt()) for name, mean in self.mean.items()}


class Collected:
    """Positions kept so far, with their log posterior; each waits for it until the next step has computed it.

    Args:
        plan: which positions are kept.
        num_steps: steps taken before.
        waiting: the position after them, if it is kept.
        moments: of sites that are not kept.
    """

    def __init__(
        self,
        plan: Plan,
        num_steps: int = 0,
        waiting: Position | None = None,
        moments: RunningMoments | None = None,
    ) -> None:
        self.plan = plan
        self.moments = moments
        self.draws: list[tuple[Position, Tensor]] = []
        self.warmup: list[Position] = []
        self.waiting = waiting
        self.num_steps = num_steps
        self.clamped = torch.zeros(plan.num_chains, dtype=torch.long)

    def took(self, taken: Taken, finite: int) -> list[str]:
        """Steps were taken, of which the first `finite` started where the log posterior is finite.

        Returns:
            Names of rows' own sites with a value that is not finite at a position that would be kept.
        """
        before = self.num_steps
        settled = [0, *(number for number, _ in taken.kept)]
        values = iter(taken.log_posterior[[number for number in settled if number < finite]].unbind())
        if finite > 0 and (bad := self._settle(next(values))):
            return bad
        for number, position in taken.kept:
            if number <= finite:
                self.num_steps = before + number
                self.waiting = position
                if number < finite and (bad := self._settle(next(values))):
                    return bad
        moved = min(finite, self.plan.num_steps - before)
        self.num_steps = before + moved
        self.clamped += taken.clamped[:moved].sum(0).cpu()
        return []

    def _settle(self, log_posterior: Tensor) -> list[str]:
        """The value at the position that waits, which is finite; names as above."""
        if self.waiting is None:
            return []
        left_out = () if self.moments is None else self.moments.left_out
        kept = {name: leaf for name, leaf in self.waiting.items() if name not in left_out}
        if self.num_steps > self.plan.warmup_steps:
            if self.moments is not None and (bad := self.moments.add(self.waiting)):
                return bad
            self.draws.append((kept, log_posterior))  # in one go: Ctrl-C may come between any two
        else:
            self.warmup.append(kept)
        self.waiting = None
        return []


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
    warmup: dict[str, Tensor] | None
    moments: dict[str, Moments]
    num_steps: int
    clamped: Tensor
    how: str
    seconds: dict[str, float]
    step_size: float
    ending: Ending | None
