"""Whether what is left of a run repays its compilation, and how long compilations took before."""

from __future__ import annotations

import json
import logging
import resource
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias, TypeVar

import torch

from pyro_scale.cached import cache_folder, kept_by, write
from pyro_scale.capture import Recorded
from pyro_scale.errors import ArgumentError
from pyro_scale.native import NativeError

logger = logging.getLogger("pyro_scale")

JitCompile: TypeAlias = Literal["auto"] | bool
T = TypeVar("T")

TRIAL_SECONDS = 0.25
"""So long calls of the recorded graph are timed before "auto" decides, where no earlier compilation tells more."""
OPERATION_SECONDS = 2.5e-6
"""What an operation of a recorded graph costs beside its arithmetic, and in native code does not."""
COMPILE_SECONDS = (2.3, 0.02)
"""A first compilation takes so long, and so much more for each operation."""
HEADER_SECONDS = 3.0
"""The first of all on a machine also compiles torch's headers."""

LATER = 1.3
"""A first compilation may cost so much more than this run saves: later processes find the code."""
LOAD_SECONDS = 0.3
"""Where a compiler was called, it is taken to need so long when the code is in the cache, until that is measured."""


class Known(NamedTuple):
    """Seconds measured before: of a compilation whose C++ is in the cache, of a call compiled, and of one recorded.

    The last is None where no call ran so.
    """

    compile: float
    compiled: float
    recorded: float | None


class Choice:
    """How calls run from here on: by the recorded graph, or compiled.

    Args:
        jit_compile: as `infer` takes it.
        recorded: the graph; None if there is none.
        how: how calls run as yet, for the log.
        reason: why there is no graph.
        variant: what else the code depends on, as the length of a chunk.
        what: what calls are, for the log.

    Attributes:
        seconds: spent on compilation.
    """

    def __init__(
        self,
        jit_compile: JitCompile,
        recorded: Recorded | None,
        how: str,
        reason: str = "",
        variant: object = (),
        what: str = "Steps",
    ) -> None:
        self.wanted = jit_compile is not False
        self.sure = jit_compile is True
        self.recorded = recorded
        self.how = how
        self.reason = reason
        self.what = what
        self.seconds = 0.0
        self.is_compiled = False
        self.calls = {False: 0, True: 0}
        self.spent = {False: 0.0, True: 0.0}
        self.record = _record_of(recorded, variant) if recorded is not None and self.wanted else None
        self.known = _read(self.record)

    def now(self, remaining: float) -> bool:
        """Whether to compile now, with so many calls to go."""
        if not self.wanted or self.is_compiled:
            return False
        if self.recorded is None:
            self._give_up(self.reason)
            return False
        if self.sure:
            return True
        if (self.known is None or self.known.recorded is None) and self.spent[False] < TRIAL_SECONDS:
            return False
        later = LATER if self.known is None else 1.0
        self.wanted = later * remaining * self._saved() > self._cost()
        return self.wanted

    def compiled(self, make: Callable[[], T]) -> T | None:
        """What `make` compiles; None if that fails, with a log line."""
        began, children = time.perf_counter(), _children()
        try:
            made = make()
        except NativeError as error:
            self._give_up(str(error))
            return None
        finally:
            self.seconds = time.perf_counter() - began
        self.in_cache = self.seconds if _children() == children else LOAD_SECONDS
        self.is_compiled = True
        self.how = self.how.replace("captured", "compiled")
        return made

    def took(self, calls: int, seconds: float) -> None:
        """So many calls took so long."""
        self.calls[self.is_compiled] += calls
        self.spent[self.is_compiled] += seconds

    def remember(self) -> None:
        """Tells later runs what was measured in this one."""
        if self.record is None or not self.is_compiled or not self.calls[True]:
            return
        recorded = self.known.recorded if self.known else None
        if self.spent[False] >= TRIAL_SECONDS:  # a few calls tell little
            recorded = self.recorded_seconds()
        _write(self.record, Known(self.in_cache, self.spent[True] / self.calls[True], recorded))

    def _saved(self) -> float:
        """Seconds by which a compiled call is quicker."""
        if self.known is not None:
            return (self.known.recorded or self.recorded_seconds()) - self.known.compiled
        return min(0.95 * self.recorded_seconds(), self._operations() * OPERATION_SECONDS)

    def _cost(self) -> float:
        """Seconds that the compilation will take."""
        if self.known is not None:
            return self.known.compile
        first, each = COMPILE_SECONDS
        folder = cache_folder()
        is_first = folder is None or not folder.exists()
        return first + each * self._operations() + (HEADER_SECONDS if is_first else 0)

    def recorded_seconds(self) -> float:
        """Of a call of the recorded graph; 0 if none was timed."""
        return self.spent[False] / max(1, self.calls[False])

    def _operations(self) -> int:
        assert self.recorded is not None
        return len(self.recorded.graph.graph.nodes)

    def _give_up(self, reason: str) -> None:
        self.wanted = False
        logger.info("%s are not compiled, and run %s. %s.", self.what, self.how, reason.rstrip("."))


def check_jit_compile(value: object) -> None:
    """Raises `ArgumentError` unless it is True, False or "auto"."""
    if value is not True and value is not False and value != "auto":
        raise ArgumentError(f"jit_compile is {value!r}; it must be True, False or 'auto'.")


def _children() -> float:
    """CPU seconds of the compilers called so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _record_of(recorded: Recorded, variant: object) -> Path | None:
    """Where what is known of a graph is written; None if nowhere."""
    operations = recorded.described()
    if operations is None:
        return None
    return kept_by((torch.__version__, torch.get_num_threads(), variant, operations), "json")


def _read(path: Path | None) -> Known | None:
    if path is None:
        return None
    try:
        found = Known(**json.loads(path.read_text()))
        assert found.compile >= 0 and found.compiled > 0 and (found.recorded is None or found.recorded > 0)
        return found
    except (OSError, ValueError, TypeError, AssertionError):  # none yet, or not ours: measured anew
        return None


def _write(path: Path, known: Known) -> None:
    with suppress(OSError):  # a folder that cannot be written to
        write(path, json.dumps(known._asdict()))
