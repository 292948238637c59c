"""What a run tells while it lasts: one progress bar, and a callback that can stop it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import NamedTuple

from tqdm.auto import tqdm

CALLBACK_INTERVAL = 0.25
"""Seconds between two calls of the callback."""


class Progress(NamedTuple):
    """How far a run is.

    Attributes:
        step: steps done by every chain.
        num_steps: steps in all: warmup_steps + num_samples * thinning.
        num_draws: draws kept by every chain.
        seconds: since the first step.
    """

    step: int
    num_steps: int
    num_draws: int
    seconds: float


Callback = Callable[[Progress], bool | None]


def interactive() -> bool:
    """Whether somebody looks on, at a terminal or in a notebook."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


class Reporter:
    """Shows a bar on a terminal or in a notebook, and calls the callback a few times a second and at the end."""

    def __init__(self, num_steps: int, show: bool, callback: Callback | None) -> None:
        self.bar = tqdm(total=num_steps, disable=not (show and interactive()), unit="step", dynamic_ncols=True)
        self.num_steps = num_steps
        self.callback = callback
        self.start = self.last = time.perf_counter()

    def update(self, step: int, num_draws: int) -> bool:
        """Reports `step` done; True if the callback wants the run to stop."""
        now = time.perf_counter()
        if now - self.last < CALLBACK_INTERVAL and step < self.num_steps:
            return False
        self.last = now
        self.bar.update(step - self.bar.n)
        if self.callback is None:
            return False
        return bool(self.callback(Progress(step, self.num_steps, num_draws, now - self.start)))

    def close(self) -> None:
        """Leaves the bar as it stands."""
        self.bar.close()
