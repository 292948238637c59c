r"""Posterior mode, and the curvature there.

Newton's direction is $V |\Lambda|^{-1} V^\top g$ with $-H = V \Lambda V^\top$: absolute eigenvalues keep it an ascent
direction where the log posterior is not concave (Nocedal & Wright (2006), section 3.4). The step is halved until the
log posterior rises, and the search ends when the Newton decrement $g^\top d / 2$, the rise that is left in nats, is
negligible. Beyond `DENSE_LIMIT` coordinates Adam goes through minibatches and the curvature is a diagonal.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torchopt
from torch import Tensor
from torch.func import grad, grad_and_value, jacrev, vmap

from pyro_scale import tree
from pyro_scale.batches import Permutations
from pyro_scale.compile import CompiledModel
from pyro_scale.types import Batch, LogPosterior, Position

logger = logging.getLogger("pyro_scale")

DENSE_LIMIT = 300
BLOCK_ROWS = 65_536
MAX_NEWTON_STEPS = 200
MAX_ADAM_STEPS = 20_000
HESSIAN_CHUNK = 64


class Mode(NamedTuple):
    """A maximum of the log posterior in unconstrained coordinates.

    Attributes:
        position: where it is.
        log_posterior: its value there, in nats, over all rows.
        converged: whether the convergence test was passed.
        num_steps: Newton or Adam steps taken.
        negative_hessian: (d, d) matrix, or the (d,) diagonal beyond `DENSE_LIMIT` coordinates, in the order of
            `tree.ravel`; nats per squared unit of the unconstrained coordinates.
    """

    position: Position
    log_posterior: float
    converged: bool
    num_steps: int
    negative_hessian: Tensor


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
    batches = row_blocks(compiled)
    if tree.size(start) <= DENSE_LIMIT:
        return newton(compiled, batches, start)
    position, converged, num_steps = adam(compiled, start, seed)
    value = float(sum(compiled(position, batch) / batch.scale for batch in batches))
    return Mode(position, value, converged, num_steps, negative_hessian_diagonal(compiled, batches, position))


def row_blocks(compiled: CompiledModel) -> list[Batch]:
    """All rows once, in blocks: the sum of `log_posterior / scale` over them is that of all rows."""
    if compiled.batch_size is None:
        return [compiled.batch()]
    return [compiled.batch(block) for block in torch.arange(compiled.num_data).split(BLOCK_ROWS)]


def newton(target: LogPosterior, batches: Sequence[Batch], start: Position) -> Mode:
    """Damped Newton with absolute eigenvalues of the Hessian; for some hundred coordinates."""
    like = tree.shapes(start)
    vector = tree.ravel(start).detach().clone()
    precise = vector.dtype == torch.float64
    tolerance = 1e-9 if precise else 1e-3
    total = _over_rows(target, batches, like)
    converged, steps, value = False, 0, total(vector)
    while steps < MAX_NEWTON_STEPS:
        steps += 1
        gradient, value = grad_and_value(total)(vector)
        eigenvalues, basis = torch.linalg.eigh(_negative_hessian(total, vector))
        direction = basis @ ((basis.T @ gradient) / absolute(eigenvalues))
        decrement = float(gradient @ direction) / 2
        if decrement < tolerance:
            converged = bool(eigenvalues.min() > 0)
            break
        moved = _backtrack(total, vector, direction, value, decrement)
        if moved is None:
            converged = decrement < (1e-4 if precise else 1e-1)  # rounding hides the rest of the rise
            break
        vector = moved
    hessian = _negative_hessian(total, vector)
    if not converged:
        logger.info("Newton's method stopped after %d steps without reaching a mode.", steps)
    return Mode(tree.unravel(vector, like), float(value), converged, steps, hessian)


def _backtrack(
    total: Callable[[Tensor], Tensor], vector: Tensor, direction: Tensor, value: Tensor, decrement: float
) -> Tensor | None:
    """The longest of the steps 1, 1/2, 1/4, ... by which the log posterior rises as its slope promises."""
    length = 1.0
    for _ in range(40):
        candidate = vector + length * direction
        if total(candidate) >= value + 1e-4 * length * 2 * decrement:
            return candidate
        length /= 2
    return None


def _negative_hessian(total: Callable[[Tensor], Tensor], vector: Tensor) -> Tensor:
    hessian: Tensor
    try:
        hessian = jacrev(grad(total))(vector)
    except RuntimeError:  # a model that vmap cannot take: one row of the Hessian at a time
        hessian = jacrev(grad(total), chunk_size=1)(vector)
    return -(hessian + hessian.T) / 2


def adam(compiled: CompiledModel, start: Position, seed: int, *, learning_rate: float = 0.05) -> tuple[Any, bool, int]:
    """Adam on minibatches; the learning rate is halved when the log posterior stops rising, eight times at most.

    The mean log posteriors of consecutive windows of steps are compared by their standard errors.

    Returns:
        Position, whether all halvings were done within `MAX_ADAM_STEPS`, and the number of steps.
    """
    generator = torch.Generator().manual_seed(seed)
    size = compiled.batch_size
    batches = None if size is None else Permutations(compiled.num_data, size, 1, generator)
    window = 50 if batches is None else min(max(50, compiled.num_data // batches.batch_size), 1000)
    position, steps = start, 0
    for halving in range(9):
        optimizer = torchopt.adam(lr=learning_rate / 2**halving)
        state = optimizer.init(position)
        before: Tensor | None = None
        while steps < MAX_ADAM_STEPS:
            values = []
            for _ in range(window):
                batch = compiled.batch(None if batches is None else batches.draw(1)[0, 0])
                gradient, value = grad_and_value(compiled)(position, batch)
                descent = tree.scale(gradient, -1 / compiled.num_data)
                updates, state = optimizer.update(descent, state, inplace=False)
                position = torchopt.apply_updates(position, updates, inplace=False)
                values.append(value)
            steps += window
            now = torch.stack(values)
            if before is not None and _stalled(before, now):
                break
            before = now
        else:
            logger.info("Adam stopped after %d steps without passing its convergence test.", steps)
            return position, False, steps
    return position, True, steps


def _stalled(before: Tensor, now: Tensor) -> bool:
    error = ((before.var() + now.var()) / len(now)).sqrt()
    return bool(now.mean() - before.mean() <= error)


def negative_hessian_diagonal(target: LogPosterior, batches: Sequence[Batch], position: Position) -> Tensor:
    """Diagonal of minus the Hessian over all rows, exactly, by one Hessian-vector product a coordinate; `(d,)`."""
    total = _over_rows(target, batches, tree.shapes(position))
    vector = tree.ravel(position)

    def entry(index: Tensor) -> Tensor:
        direction = torch.nn.functional.one_hot(index, len(vector)).to(vector)
        slope: Tensor = grad(lambda v: grad(total)(v) @ direction)(vector)
        return -slope @ direction

    chunks = torch.arange(len(vector), device=vector.device).split(HESSIAN_CHUNK)
    return torch.cat([vmap(entry)(chunk) for chunk in chunks])


def _over_rows(
    target: LogPosterior, batches: Sequence[Batch], like: dict[str, torch.Size]
) -> Callable[[Tensor], Tensor]:
    """The log posterior over all rows as a function of the raveled position."""

    def total(vector: Tensor) -> Tensor:
        position = tree.unravel(vector, like)
        return torch.stack([target(position, batch) / batch.scale for batch in batches]).sum()

    return total


def absolute(eigenvalues: Tensor) -> Tensor:
    """Absolute values, kept off 0 relative to the largest."""
    size = eigenvalues.abs()
    least = float(size.max()) * torch.finfo(size.dtype).eps * len(size)
    return size.clamp(min=max(least, torch.finfo(size.dtype).tiny))
