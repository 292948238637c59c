r"""Posterior mode, and the curvature there.

Newton's direction is $|H|^{-1} g$, with the absolute eigenvalues of the Hessian: they keep it an ascent direction where
the log posterior is not concave (Nocedal & Wright (2006), section 3.4). The step is halved until the log posterior
rises. Half of $g^\top |H|^{-1} g$, the Newton decrement, is the rise that is left in nats. Beyond `DENSE_LIMIT`
coordinates Adam goes through minibatches and the curvature is a diagonal.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

import torch
import torchopt
from torch import Tensor
from torch.func import grad_and_value

from pyro_scale import tree
from pyro_scale.batches import Permutations
from pyro_scale.capture import record_or_keep
from pyro_scale.compile import CompiledModel
from pyro_scale.hessian import AllRows, Spectrum, row_blocks
from pyro_scale.starts import LinAlgError
from pyro_scale.types import Batch, LogPosterior, Position

logger = logging.getLogger("pyro_scale")

DENSE_LIMIT = 300
MAX_NEWTON_STEPS = 200
MAX_HALVINGS = 40
MAX_SLOW_STEPS = 5
MAX_ADAM_STEPS = 20_000


class Mode(NamedTuple):
    """A maximum of the log posterior in unconstrained coordinates.

    Attributes:
        position: where it is.
        log_posterior: its value there, in nats, over all rows.
        converged: whether it is one. Not so where a direction is flat, as by two equal covariates without a prior, or
            where the log posterior rises forever, as in logistic regression of separable classes without a prior.
        num_steps: Newton or Adam steps taken.
        negative_hessian: (d, d) matrix, or the (d,) diagonal beyond `DENSE_LIMIT` coordinates, in the order of
            `tree.ravel`; nats per squared unit of the unconstrained coordinates.
    """

    position: Position
    log_posterior: float
    converged: bool
    num_steps: int
    negative_hessian: Tensor


@torch.no_grad()  # a model may hold parameters, which would tie every step to all the ones before
def find_mode(compiled: CompiledModel, start: Position, *, seed: int = 0) -> Mode:
    """Climbs from `start` to a mode of the log posterior over all rows.

    Args:
        compiled: the model.
        start: unconstrained position with a finite log density.
        seed: of the minibatches, which are used beyond `DENSE_LIMIT` coordinates only.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro_scale.compile import compile_model
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("obs", dist.Normal(mu, 1.0), obs=y)
        >>> compiled = compile_model(model, {"y": torch.full((3,), 2.0, dtype=torch.float64)})
        >>> found = find_mode(compiled, compiled.initial_position(0))
        >>> round(float(found.position["mu"]), 6), found.negative_hessian.round().tolist()
        (1.5, [[4.0]])
    """
    if tree.size(start) <= DENSE_LIMIT:
        return newton(compiled, row_blocks(compiled), start)
    position, converged, num_steps = adam(compiled, start, seed)
    rows, vector = AllRows(with_all_rows(compiled), row_blocks(compiled), start), tree.ravel(position)
    diagonal = rows.negative_hessian_diagonal(vector)
    is_maximum = converged and bool((diagonal > 0).all())
    if not is_maximum:
        logger.info("Adam stopped after %d steps without reaching a mode.", num_steps)
    return Mode(position, float(rows.value(vector)), is_maximum, num_steps, diagonal)


class _Iterate(NamedTuple):
    """A point of Newton's method: the second-order expansion there, and the step that it suggests."""

    vector: Tensor
    value: Tensor
    negative_hessian: Tensor
    direction: Tensor
    decrement: float
    positive: bool

    @classmethod
    def at(cls, rows: AllRows, vector: Tensor) -> _Iterate:
        gradient, value = rows.gradient(vector)
        hessian = rows.negative_hessian(vector)
        if not (torch.isfinite(gradient).all() and torch.isfinite(hessian).all()):
            return cls(vector, value, hessian, torch.full_like(vector, torch.nan), math.nan, False)
        spectrum = Spectrum.of(hessian)
        direction = spectrum.solve(gradient)
        return cls(vector, value, hessian, direction, float(gradient @ direction) / 2, spectrum.positive)


def newton(target: LogPosterior, batches: Sequence[Batch], start: Position) -> Mode:
    """Damped Newton with absolute eigenvalues of the Hessian; for some hundred coordinates.

    It has converged when little rise is left and the last step took away nearly all there was: at a mode a step
    squares the rise, while on the way to infinity a step leaves a fixed share of it, however small it has become.
    """
    rows = AllRows(target, batches, start)
    here = _Iterate.at(rows, tree.ravel(start).detach().clone())
    tolerance = 1e-9 if here.vector.dtype == torch.float64 else 1e-3
    converged, steps, slow, before = False, 0, 0, math.inf
    while steps < MAX_NEWTON_STEPS and slow < MAX_SLOW_STEPS and not math.isnan(here.decrement):
        if here.decrement < tolerance:
            converged = here.positive and here.decrement <= 0.1 * before
            if converged or not here.positive:
                break
        moved = _backtrack(rows, here)
        if moved is None:
            break
        before, value, steps = here.decrement, here.value, steps + 1
        here = _Iterate.at(rows, moved)
        slow += before < tolerance or bool(here.value <= value)
    if converged:  # one more step squares what error the tolerance left
        here, steps = _Iterate.at(rows, here.vector + here.direction), steps + 1
    else:
        logger.info("Newton's method stopped after %d steps without reaching a mode.", steps)
    position = tree.unravel(here.vector, rows.shapes)
    return Mode(position, float(here.value), converged, steps, here.negative_hessian)


def _backtrack(rows: AllRows, here: _Iterate) -> Tensor | None:
    """The longest of the steps 1, 1/2, 1/4, ... by which the log posterior rises as its slope promises."""
    rounding = 8 * torch.finfo(here.value.dtype).eps * float(here.value.abs())
    length = 1.0
    for _ in range(MAX_HALVINGS):
        candidate = here.vector + length * here.direction
        with suppress(LinAlgError):  # a matrix of the model may not be positive definite so far away
            if rows.value(candidate) >= here.value + 1e-4 * length * 2 * here.decrement - rounding:
                return candidate
        length /= 2
    return None


@torch.no_grad()
def adam(
    compiled: CompiledModel, start: Position, seed: int, *, learning_rate: float = 0.05
) -> tuple[Position, bool, int]:
    """Adam on minibatches; the learning rate is halved when the log posterior stops rising, eight times at most.

    The mean log posteriors of consecutive windows of steps are compared by their standard errors.

    Returns:
        Position, whether all halvings were done within `MAX_ADAM_STEPS`, and the number of steps.
    """
    size = compiled.batch_size
    batches = Permutations(compiled.num_data, size or compiled.num_data, 1, torch.Generator().manual_seed(seed))
    window = 50 if size is None else min(max(50, compiled.num_data // size), 1000)

    def next_batch() -> Batch:
        return compiled.batch(None if size is None else batches.draw(1)[0, 0])

    function, _ = record_or_keep(grad_and_value(with_all_rows(compiled)), start, next_batch())
    position, steps = start, 0
    for halving in range(9):
        optimizer = torchopt.adam(lr=learning_rate / 2**halving)
        state = optimizer.init(position)
        before: Tensor | None = None
        while True:
            values = []
            for _ in range(window):
                gradient, value = function(position, next_batch())
                descent = tree.scale(gradient, -1 / compiled.num_data)
                updates, state = optimizer.update(descent, state, inplace=False)
                position = torchopt.apply_updates(position, updates, inplace=False)
                values.append(value)
            steps += window
            now = torch.stack(values)
            if before is not None and _stalled(before, now):
                break
            if steps >= MAX_ADAM_STEPS or not torch.isfinite(now).all():
                return position, False, steps
            before = now
    return position, True, steps


def with_all_rows(compiled: CompiledModel) -> LogPosterior:
    """The log posterior on a batch at positions that hold the values of all rows."""
    return lambda position, batch: compiled(compiled.at_rows(position, batch.indices), batch)


def _stalled(before: Tensor, now: Tensor) -> bool:
    error = ((before.var() + now.var()) / len(now)).sqrt()
    return bool(now.mean() - before.mean() <= error)
