"""Whether the rest of a run repays its compilation."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Literal, TypeAlias

from pyro_scale.capture import Step
from pyro_scale.loop import Loop
from pyro_scale.native import NativeError

logger = logging.getLogger("pyro_scale")

JitCompile: TypeAlias = Literal["auto"] | bool

CALL_SECONDS = 0.1
"""A call of the native loop lasts about so long: Ctrl-C and the callback wait for its end."""


class Choice:
    """How steps run from here on.

    Args:
        jit_compile: as `infer` takes it.
        step: as it runs now.
    """

    def __init__(self, jit_compile: JitCompile, step: Step) -> None:
        self.wanted = jit_compile is not False
        self.sure = jit_compile is True
        self.step = step
        self.how = step.how
        self.seconds = 0.0
        self.steps_a_call = 64
        self.loop: Loop | None = None

    def compiles(self, remaining: int) -> bool:
        """Whether to compile now, with so many steps to go."""
        if not self.wanted:
            return False
        if self.step.recorded is None:
            self._give_up(self.step.reason)
            return False
        return self.sure

    def compiled(self, make: Callable[[], Loop]) -> Loop | None:
        """The compiled loop; None if that fails, with a log line."""
        began = time.perf_counter()
        try:
            self.loop = make()
        except NativeError as error:
            self._give_up(str(error))
        self.seconds = time.perf_counter() - began
        if self.loop is not None:
            self.how = self.how.replace("captured", "compiled")
        return self.loop

    def took(self, num_steps: int, seconds: float) -> None:
        """So many steps took so long."""
        if self.loop is not None and num_steps == self.steps_a_call:
            self.steps_a_call = max(1, min(4 * num_steps, round(num_steps * CALL_SECONDS / max(seconds, 1e-9))))

    def _give_up(self, reason: str) -> None:
        self.wanted = False
        logger.info("Steps are not compiled, and run %s. %s", self.step.how, reason)
