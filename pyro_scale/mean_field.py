r"""A normal in the place of a mode, where there is none: mean-field variational inference.

As the sd of a group goes to 0, and the values of its members to their mean, the log posterior rises without end, though
next to nothing of the posterior is there: what rises is the density, at curvatures that rise with it. Laplace's
approximation of the evidence, $\log p(\theta) - \frac{1}{2} \sum_i \log h_i$ with the diagonal h of the curvature, does
not rise along such a climb. The evidence lower bound of a normal has its maximum where the posterior is; from where a
climb is already far gone, variational inference does not find back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from pyro_scale import tree
from pyro_scale.collected import Plan
from pyro_scale.compile import CompiledModel
from pyro_scale.fit import gaussian_of
from pyro_scale.gradient import Frame
from pyro_scale.kernels import DiagonalVI
from pyro_scale.mode import Mode
from pyro_scale.progress import Reporter
from pyro_scale.sample import Run
from pyro_scale.schedules import cosine
from pyro_scale.whitening import Whitened

CLEAR_RISE = 20.0
"""Nats that a log posterior rises at least, where it is to be told from noise."""
LAST = 0.1
"""The share of the steps whose mean objective is that of the fit."""


def is_endless(before: Mode, after: Mode) -> bool:
    """Whether all that a climb gained is density: the evidence around its end has not risen."""
    return after.log_posterior - before.log_posterior > CLEAR_RISE and _evidence(after) <= _evidence(before)


def best_normal(
    compiled: CompiledModel, places: Sequence[Mode], num_steps: int, seeds: Sequence[int], seek: Callable[[], None]
) -> Mode | None:
    """The normal of the highest evidence lower bound, as a mode: its mean, and the inverse of its variances.

    Args:
        compiled: the model.
        places: that the climb came through, with their curvatures; each is where a fit starts.
        num_steps: of each fit.
        seeds: two.
        seek: is called on the way.
    """
    fits = [fit for place in places if (fit := _fitted(compiled, place, num_steps, seeds, seek)) is not None]
    return max(fits, key=lambda fit: fit.log_posterior, default=None)


def _evidence(mode: Mode) -> float:
    return mode.log_posterior - float(mode.negative_hessian.abs().log().sum()) / 2


def _fitted(
    compiled: CompiledModel, place: Mode, num_steps: int, seeds: Sequence[int], seek: Callable[[], None]
) -> Mode | None:
    """From a place, in coordinates scaled by its curvature; None where that is not finite, or the fit diverges."""
    if not place.negative_hessian.isfinite().all():
        return None
    whitened = Whitened(compiled, place, compiled.num_data)
    kernel = DiagonalVI(step_size=cosine(DiagonalVI.default_step_size, 0.0, num_steps))
    start = tree.map(lambda leaf: leaf.unsqueeze(0), place.position)
    run = Run(compiled, kernel, Plan(0, num_steps, 1, 1, (), traced=True), start, seeds, False, Frame(whitened))
    if run.finish(Reporter(num_steps, False, lambda _: seek())) is not None:
        return None
    normal: Any = gaussian_of(run.bound, run.steps.chains, run.table)
    trace = torch.cat(run.collected.trace)[-max(1, round(LAST * num_steps)) :]
    bound = float(trace.mean()) + float(whitened.factor.log().sum())  # a volume of unconstrained coordinates
    return Mode(normal.mean, bound, False, num_steps, tree.ravel(normal.sd) ** -2)
