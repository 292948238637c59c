"""The modes above several starts, each once."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Sequence

import torch

from pyro_scale import tree
from pyro_scale.compile import CompiledModel
from pyro_scale.data import names_of
from pyro_scale.hessian import AllRows
from pyro_scale.mode import Mode, find_mode, newton
from pyro_scale.types import Batch, Position

logger = logging.getLogger("pyro_scale")

MOST_CLIMBS = 4
MOST_NAMED = 4
CLIMB_ROWS = 2**15
"""Of many more rows, the first climbs see a sample of so many."""
LEAST_EVIDENCE = 20.0
"""Modes whose probability, by Laplace's approximation, is lower by so many nats are left to no chain."""
SAME_MODE = 0.01
"""Squared distance, in posterior variances a coordinate, within which two climbs have found the same mode."""


def distinct_modes(compiled: CompiledModel, starts: Position) -> list[Mode]:
    """The distinct modes above the first starts, the highest first; a warning names what has none."""
    number = min(MOST_CLIMBS, len(next(iter(starts.values()))))
    first = [{name: leaf[chain] for name, leaf in starts.items()} for chain in range(number)]
    if compiled.num_data > 2 * CLIMB_ROWS and compiled.structure.minibatch_error is None:
        rows = torch.randperm(compiled.num_data, generator=torch.Generator().manual_seed(0), device="cpu")
        some = compiled.batch(rows[:CLIMB_ROWS])
        found = distinct([newton(lambda at, batch: batch.scale * compiled(at, batch), [some], at) for at in first])
        first = [mode.position for mode in found] or first[:1]
    climbs = [find_mode(compiled, start) for start in first]
    modes = distinct(climbs)
    if not modes:
        _warn(max(climbs, key=lambda each: each.log_posterior if math.isfinite(each.log_posterior) else -math.inf))
    return modes


def _warn(highest: Mode) -> None:
    """Names the coordinates that the flattest direction moves, where the climbs ended without a mode."""
    logger.warning(
        "The log posterior has no mode above the starts: it is flat, or rises without end, along %s. The posterior may "
        "be improper (equal covariates or separable classes without a prior), or a group sd may draw it to 0; trust "
        "the draws where R-hat is near 1 only.",
        names_of(_flattest(highest)),
    )


def _flattest(mode: Mode) -> list[str]:
    """The coordinates that matter in the direction of least curvature, all being scaled to curvature 1."""
    names = [
        f"{name}[{', '.join(map(str, index))}]" if index else name
        for name, leaf in mode.position.items()
        for index in itertools.product(*map(range, leaf.shape))
    ]
    scale = mode.negative_hessian.diagonal().abs().clamp(min=torch.finfo(mode.negative_hessian.dtype).tiny).rsqrt()
    matrix = scale[:, None] * mode.negative_hessian * scale
    if not matrix.isfinite().all():
        return list(mode.position)
    direction = torch.linalg.eigh(matrix).eigenvectors[:, 0].abs()
    return [names[i] for i in direction.argsort(descending=True)[:MOST_NAMED] if direction[i] > 0.3 * direction.max()]


def distinct(climbs: Sequence[Mode]) -> list[Mode]:
    """The modes that climbs reached, each once, but for those of next to no probability; the highest first."""
    distinct: list[Mode] = []
    for mode in sorted((each for each in climbs if each.converged), key=lambda each: -each.log_posterior):
        at = tree.ravel(mode.position)
        steps = [at - tree.ravel(other.position) for other in distinct]
        if all(float(step @ mode.negative_hessian @ step) > SAME_MODE * len(at) for step in steps):
            distinct.append(mode)
    evidence = [mode.log_posterior - float(mode.negative_hessian.slogdet().logabsdet) / 2 for mode in distinct]
    return [mode for mode, one in zip(distinct, evidence, strict=True) if one > max(evidence) - LEAST_EVIDENCE]


def curvature_at(compiled: CompiledModel, blocks: Sequence[Batch], position: Position) -> Mode:
    """As a mode, where there is none."""
    rows, vector = AllRows(compiled, blocks, position), tree.ravel(position)
    return Mode(position, float(rows.value(vector)), False, 0, rows.negative_hessian(vector))
