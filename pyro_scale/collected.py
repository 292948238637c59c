"""Which positions of a run are kept, and those kept so far."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_scale.types import Position


@dataclass(frozen=True)
class Plan:
    """How long to run and what to keep.

    Attributes:
        num_samples: draws kept by a chain.
        warmup_steps: steps before the first draw can be kept.
        thinning: steps from one kept draw to the next.
        num_chains: chains.
        keep: sites whose draws are kept.
        save_warmup: whether every `thinning`-th position of the warm-up is kept too.
    """

    num_samples: int
    warmup_steps: int
    thinning: int
    num_chains: int
    keep: tuple[str, ...]
    save_warmup: bool = False

    @property
    def num_steps(self) -> int:
        """Steps a chain takes in all."""
        return self.warmup_steps + self.num_samples * self.thinning

    def kept_after(self, step: int) -> bool:
        """Whether the position after this many steps is kept."""
        if step <= self.warmup_steps:
            return self.save_warmup and step > 0 and step % self.thinning == 0
        return (step - self.warmup_steps) % self.thinning == 0


class Collected:
    """Positions kept so far, with their log posterior; each waits for it until the next step has computed it."""

    def __init__(self, plan: Plan, num_steps: int = 0, waiting: Position | None = None) -> None:
        self.plan = plan
        self.draws: list[tuple[Position, Tensor]] = []
        self.warmup: list[Position] = []
        self.waiting = waiting
        self.num_steps = num_steps
        self.clamped = torch.zeros(plan.num_chains, dtype=torch.long)

    def settle(self, log_posterior: Tensor) -> None:
        """The value at the position that waits, which is finite."""
        if self.waiting is None:
            return
        if self.num_steps > self.plan.warmup_steps:
            self.draws.append((self.waiting, log_posterior))  # in one go: Ctrl-C may come between any two
        else:
            self.warmup.append(self.waiting)
        self.waiting = None

    def add(self, position: Position, clamped: Tensor) -> None:
        """One more step was taken and led to `position`."""
        self.num_steps += 1
        self.clamped += clamped.cpu()
        self.waiting = position if self.plan.kept_after(self.num_steps) else None
