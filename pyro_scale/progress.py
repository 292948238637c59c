"""What a run tells while it lasts: one progress bar, and a callback that can stop it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from tqdm.auto import tqdm

from pyro_scale.errors import StoppedError

CALLBACK_INTERVAL = 0.25
"""Seconds between two calls of the callback."""


class Progress(NamedTuple):
    """How far a run is.

    Attributes:
        step: steps done by every chain, those of the pilot run included; 0 while modes are sought.
        num_steps: steps in all: warmup_steps + num_samples * thinning; as few as it may be, before the pilot run has
            chosen these.
        num_draws: draws kept by every chain.
        seconds: since the chains had starts, from which modes are sought or steps taken.
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
    """Shows a bar on a terminal or in a notebook, and calls the callback a few times a second and at the end.

    Args:
        num_steps: steps in all, as far as is known.
        show: whether to show a bar where somebody looks on.
        callback: of the user.
    """

    def __init__(self, num_steps: int, show: bool, callback: Callback | None) -> None:
        self.show = show and interactive()
        self.bar: Any = None  # until there is something to show: what may be wrong with the run is told without one
        self.num_steps, self.taken = num_steps, 0
        self.callback = callback
        self.start = self.last = time.perf_counter()

    def expect(self, num_steps: int, taken: int) -> None:
        """A part of the run begins: so many steps are known to come in all, of which so many are taken."""
        self.num_steps, self.taken = num_steps, taken

    def seek(self) -> None:
        """Reports that a mode is sought.

        Raises:
            StoppedError: the callback wants the run to stop.
        """
        if self.update(0, 0):
            raise StoppedError("stopped by the callback while modes were sought")

    def update(self, step: int, num_draws: int) -> bool:
        """Reports `step` of this part done; True if the callback wants the run to stop before its end."""
        now, step = time.perf_counter(), self.taken + step
        if now - self.last < CALLBACK_INTERVAL and step < self.num_steps:
            return False
        self.last = now
        if self.bar is None:
            self.bar = tqdm(total=self.num_steps, disable=not self.show, unit="step", dynamic_ncols=True)
        self.bar.total = self.num_steps
        self.bar.update(step - self.bar.n)
        if self.callback is None:
            return False
        stop = self.callback(Progress(step, self.num_steps, num_draws, now - self.start))
        return bool(stop) and step < self.num_steps

    @contextmanager
    def closed_by_errors(self) -> Iterator[None]:
        """What follows is part of the run, unless an error ends it."""
        try:
            yield
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Leaves the bar as it stands."""
        if self.bar is not None:
            self.bar.close()
