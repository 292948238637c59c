"""A run that is to teach warm-up something: its positions are what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from pyro_scale import tree
from pyro_scale.collected import Plan
from pyro_scale.compile import CompiledModel
from pyro_scale.errors import StoppedError
from pyro_scale.gradient import Frame
from pyro_scale.progress import Reporter
from pyro_scale.sample import Run
from pyro_scale.types import Kernel, Position


def explore(
    compiled: CompiledModel,
    kernel: Kernel,
    number: int,
    thinning: int,
    start: Position,
    seeds: Sequence[int],
    frame: Frame,
    reporter: Reporter,
    seen: Callable[[Position], Position] | None = None,
) -> Position | None:
    """Unconstrained positions, every `thinning`-th, `(number, num_chains, *site)`; None if one is not finite.

    `seen` is told of them as they come, `(n, num_chains, *site)`, and what it returns is kept in their place.

    Raises:
        StoppedError: the callback stopped the run.
        Exception: that of the model or the callback, or Ctrl-C.
    """
    num_chains = len(next(iter(start.values())))
    run = Run(compiled, kernel, Plan(number, 0, thinning, num_chains, ()), start, seeds, False, frame)
    run.collected.values, run.collected.moments = seen, None
    try:
        ending = run.finish(reporter)
    except Exception as error:
        error.posterior = None  # type: ignore[attr-defined]
        raise
    if ending is not None and not ending.failed:
        raise StoppedError(f"stopped by the callback after {reporter.taken + run.collected.num_steps} pilot steps")
    if ending is not None:
        return None
    return tree.map(lambda *leaves: torch.cat(leaves), *(each.positions for each in run.collected.draws))
