"""Which runs can be tuned."""

from __future__ import annotations

import math
from typing import Any

from torch.utils.data import DataLoader

from pyro_scale.compile import CompiledModel
from pyro_scale.law import law_of
from pyro_scale.loaders import Streamed
from pyro_scale.step_sizes import SMALLEST
from pyro_scale.types import Kernel


def why_not_tuned(compiled: CompiledModel, kernel: Kernel) -> str:
    """What keeps a run from being tuned; "" if nothing does."""
    if isinstance(compiled.data, Streamed) and type(compiled.data.loader).__iter__ is not DataLoader.__iter__:
        name = type(compiled.data.loader).__name__
        return f"{name} iterates in a way of its own, and may yield other rows than its dataset holds"
    if callable(kernel.temperature) or kernel.temperature == 0:
        return "the temperature is a schedule, or 0"
    known: Any = getattr(kernel, "gradient_variance", 0.0)
    if isinstance(known, dict) or known != 0:
        return "gradient_variance, which tuning would measure, is given"
    try:
        lawful = math.isfinite(law_of(kernel, SMALLEST).sd)
    except Exception:  # a kernel of somebody else's may do anything
        lawful = False
    return "" if lawful else f"{type(kernel).__name__} has no law on a normal posterior that could be computed"
