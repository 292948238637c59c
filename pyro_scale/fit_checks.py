"""Whether a fit has converged: checks, each a number beside its limit."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_scale import tree
from pyro_scale.assessment import examine, sd_errors, why_not_examined
from pyro_scale.capture import first_line
from pyro_scale.compile import CompiledModel
from pyro_scale.fisher import Fisher
from pyro_scale.fit import Fit, pass_rows
from pyro_scale.gradient import anchor_at
from pyro_scale.health import Check, at_most, of_ending, of_sds
from pyro_scale.hessian import AllRows, Spectrum, row_blocks
from pyro_scale.loaders import Streamed
from pyro_scale.mode import DENSE_LIMIT

logger = logging.getLogger("pyro_scale")

DISTANCE_LIMIT = {"dense": 0.1, "diagonal": 1.0}
"""Root mean squares over coordinates, in posterior standard deviations: of the way to the mode, by the whole curvature,
as Laplace's approximations have it; or of the gradient, by the curvature of each coordinate or the sds of a normal."""
RISE_LIMIT = 0.1
"""That the objective may still rise from the third quarter of the steps to the last, in nats a coordinate."""
WIDTH_LIMIT = 0.25
"""Of the error of sds, where nothing but steps or particles makes draws as wide as they are."""
LEAST_STEPS = 2
ERRORS = 3
LONGER = "Raise warmup_steps, or lower step_size."


def why_not_checked(compiled: CompiledModel) -> str:
    """What keeps the gradient of all rows from being looked at; "" if nothing does."""
    if isinstance(compiled.data, Streamed):
        return "the rows come from a DataLoader"
    if compiled.local and compiled.batch_size is not None:
        return f"'{next(iter(compiled.local))}' has a value for each row of the minibatches"
    return ""


def checks_of(compiled: CompiledModel, kernel: Any, fit: Fit, draws: Mapping[str, Tensor]) -> list[Check]:
    """Checks of a fit and its constrained draws; the fit is not lost to what they meet in a model."""
    found = of_ending(fit.ending.reason if fit.ending else None)
    try:
        if fit.gaussian is None and hasattr(kernel, "objective"):
            found += _of_modes(compiled, kernel, fit)
            return found
        if fit.gaussian is not None and not why_not_checked(compiled):
            found.append(_of_mean(compiled, kernel, fit))
        if kernel.fitting(1).minibatches:
            found += _of_path(fit)
        found += _of_width(compiled, kernel, fit, draws)
        found += [_of_pass(compiled, fit)] if kernel.fitting(1).one_pass else _of_trace(fit)
    except Exception as error:
        logger.warning("The fit could not be judged: %s.", first_line(error))
    return found


def _of_modes(compiled: CompiledModel, kernel: Any, fit: Fit) -> list[Check]:
    """How far the worst of the positions is from a mode."""
    if why_not_checked(compiled):
        return []
    number = len(next(iter(fit.position.values())))
    size = tree.size(fit.position) // number
    dense = size <= DENSE_LIMIT
    measure = _newton_distance if dense else _gradient_in_sds
    away = [measure(compiled, kernel, tree.map(lambda leaf, k=k: leaf[k], fit.position)) for k in range(number)]
    worst = max(range(number), key=lambda k: away[k] if math.isfinite(away[k]) else math.inf)
    name = "distance from the mode, in sds" if dense else "gradient at the mode, in sds"
    limit = DISTANCE_LIMIT["dense" if dense else "diagonal"]
    remedy = (
        f"the gradient there is not 0: the climb has not reached a mode. {LONGER} Where the log posterior has no mode "
        "(a group sd at 0, separable classes without a prior) give the sites proper priors."
    )
    where = f"fit {worst}" if number > 1 else ""
    return [at_most(name, away[worst], limit, where, remedy)]


def _of_mean(compiled: CompiledModel, kernel: Any, fit: Fit) -> Check:
    """Gradient of the log posterior of all rows at the mean, in sds of the normal: 0 where the posterior is normal."""
    assert fit.gaussian is not None
    blocks = Fisher(compiled, torch.Generator()).blocks
    gradient = anchor_at(compiled, blocks, fit.gaussian.mean).gradient
    along = fit.gaussian.spread(tree.map(lambda leaf: leaf.unsqueeze(0), gradient))
    value = math.sqrt(float(tree.ravel(along).double().square().mean()))
    remedy = "the normal stands beside the mode, by so many of its sds: "
    if kernel.fitting(1).one_pass:
        remedy += (
            "the likelihood of a batch was far from normal where the filter stood. Lower batch_size, so that it moves "
            "less at a time, or use another method, as vi_diag or laplace_diag."
        )
    else:
        remedy += f"the fit has not converged, or the posterior is far from normal. {LONGER}"
    return at_most("gradient at the mean, in sds", value, DISTANCE_LIMIT["diagonal"], "", remedy)


def _of_pass(compiled: CompiledModel, fit: Fit) -> Check:
    """That every row was taken in once: a filter counts what it is told as new."""
    value = fit.trace.shape[1] / math.ceil(compiled.num_data / pass_rows(compiled))
    told = "rows count more than once, and the normal is too narrow" if value > 1 else "not all rows count"
    remedy = "" if value == 1 else f"{told}. Leave warmup_steps out."
    return Check("passes through the rows", value, 1, value == 1, "", remedy)


def _of_path(fit: Fit) -> list[Check]:
    """That there are steps whose spread is the result's."""
    steps = fit.trace.shape[1]
    remedy = "the path of so few steps has no width, and neither has the normal. Raise warmup_steps."
    return [Check("steps of the path", steps, LEAST_STEPS, False, "", remedy)] if steps < LEAST_STEPS else []


def _of_width(compiled: CompiledModel, kernel: Any, fit: Fit, draws: Mapping[str, Tensor]) -> list[Check]:
    """That draws are as wide as gradients there say, for each coordinate given the others.

    Of what follows the wrong correlations they do not tell.
    """
    fitting, temperature, steps = kernel.fitting(1), kernel.temperature, fit.trace.shape[1]
    made_by_steps = fitting.num_particles > 0 or (fitting.minibatches and steps >= LEAST_STEPS)
    if not made_by_steps or fit.ending is not None or callable(temperature) or not temperature:
        return []
    if why_not_examined(compiled, draws):
        return []
    rows = (compiled.batch_size or compiled.num_data) * max(1, fitting.num_particles)
    errors = sd_errors(examine(compiled, draws, steps * rows), temperature)
    narrow = "Take more particles, or another method, as vi_dense or laplace_dense."
    if fitting.minibatches:
        narrow = "Raise step_size or lower batch_size, or leave step_size None."
    check = of_sds("sd error, by gradients", errors, WIDTH_LIMIT, LONGER, narrow)
    return [] if check is None else [check]


def _newton_distance(compiled: CompiledModel, kernel: Any, position: Any) -> float:
    """Newton's step, in sds of the normal with the curvature there: root mean square over coordinates."""
    rows = AllRows(kernel.objective(compiled), row_blocks(compiled), position)
    vector = tree.ravel(position)
    gradient, hessian = rows.gradient(vector)[0], rows.negative_hessian(vector)
    if not (gradient.isfinite().all() and hessian.isfinite().all()):
        return math.inf
    spectrum = Spectrum.of(hessian)
    if not spectrum.positive:
        return math.inf
    return math.sqrt(max(0.0, float(gradient @ spectrum.solve(gradient))) / len(vector))


def _gradient_in_sds(compiled: CompiledModel, kernel: Any, position: Any) -> float:
    """Root mean square over coordinates of the gradient times the sd that their own curvature leaves."""
    fisher = Fisher(compiled, torch.Generator().manual_seed(0))
    gradient: Tensor = tree.ravel(anchor_at(kernel.objective(compiled), fisher.blocks, position).gradient)
    rows, rest = fisher.diagonal(position)
    curvature = rows + rest
    known = curvature > 0
    return math.sqrt(float((gradient[known] ** 2 / curvature[known]).double().mean()))


def _of_trace(fit: Fit) -> list[Check]:
    """By how much the objective still rises."""
    quarter = fit.trace.shape[1] // 4
    if quarter < 2:
        return []
    size = tree.size(fit.position) // len(next(iter(fit.position.values())))
    before, after = fit.trace[0, -2 * quarter : -quarter].double(), fit.trace[0, -quarter:].double()
    rise = float(after.mean() - before.mean())
    # by differences of neighbours, which a trend does not widen
    error = math.sqrt(sum(float(each.diff().square().mean()) / 2 for each in (before, after)) / quarter)
    passed = rise - ERRORS * error <= RISE_LIMIT * size
    remedy = "" if passed else f"the objective still rises: the fit has not converged. {LONGER}"
    return [Check("rise of the objective, in nats", rise, RISE_LIMIT * size, passed, "", remedy)]
