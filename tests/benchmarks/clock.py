"""How long a call of one thread takes, once warm, on the clock of its process: what else runs does not count."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

WARM = 3


def milliseconds(call: Callable[[], object], number: int) -> float:
    """The median of so many calls."""
    for _ in range(WARM):
        call()
    times = []
    for _ in range(number):
        began = time.process_time()
        call()
        times.append(time.process_time() - began)
    return statistics.median(times) * 1e3
