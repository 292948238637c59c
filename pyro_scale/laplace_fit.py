r"""A pass over all rows at a mode, from which Laplace's approximation and the evidence follow.

The evidence is that of the normal distribution, MacKay (1992): with d coordinates,

$$\log p(y) \approx \log p(y \mid \hat\theta) + \log p(\hat\theta) + \frac{d}{2} \log 2\pi + \frac12 \log\det\Sigma ,$$

densities being those of the unconstrained coordinates. Sites that are held count with their prior density.

References:
    MacKay (1992), A practical Bayesian framework for backpropagation networks, Neural Computation.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

from pyro_scale import tree
from pyro_scale.compile import CompiledModel
from pyro_scale.curvature.jacobian import check_rows
from pyro_scale.errors import ArgumentError, MinibatchError, NonFiniteError
from pyro_scale.gaussians.normals import sum_of_squares
from pyro_scale.health import Check, at_most
from pyro_scale.hessian import AllRows
from pyro_scale.loaders import Streamed
from pyro_scale.types import Batch, Gaussian, Position, Settings

MOST_ROWS, LEAST_ROWS, BLOCK_NUMBERS = 4096, 32, 2**24
"""Rows of a block: those of a minibatch, or so many that these times coordinates are at most so many numbers."""
MOST_AWAY = 0.1
"""Root mean square of the way to the mode over coordinates, in standard deviations."""


class LaplaceFit(NamedTuple):
    """What the pass leads to.

    Attributes:
        gaussian: the approximation.
        log_marginal_likelihood: in nats; None at another temperature than 1.
        gradient_norm: of the log posterior of all rows at the mode, per unit of the unconstrained coordinates.
        checks: whether it was a mode, and whether the precision was positive there.
    """

    gaussian: Gaussian
    log_marginal_likelihood: float | None
    gradient_norm: float
    checks: list[Check]


def laplace_at(compiled: CompiledModel, kernel: Any, position: Position, seed: int) -> LaplaceFit:
    """Laplace's approximation around a position, best a mode.

    Args:
        compiled: the model.
        kernel: a Laplace kernel.
        position: unconstrained, of all sites.
        seed: of what is random in a structure.

    Raises:
        ArgumentError: no site is chosen, there are too many coordinates, or the rows are those of a loader.
        MinibatchError: sites have a value for each row, and the rows come in minibatches.
        ModelError: the likelihood has no such curvature, or the posterior is flat.
        NonFiniteError: log posterior or gradient are not finite at the position.
    """
    refuse(compiled, kernel, position)
    batches = blocks(compiled, tree.size(position))
    rows = AllRows(compiled, batches, position)
    gradient, value = rows.gradient(tree.ravel(position))
    if not (bool(gradient.isfinite().all()) and bool(value.isfinite())):
        raise NonFiniteError(
            f"Laplace's approximation needs a finite log posterior and gradient at the mode: "
            f"{compiled.blame(position, batches[0])}"
        )
    bound = kernel.bind(compiled, compiled.num_data)
    noise, state, clamped = _normals(bound.noise_shape(position), position, seed), None, 0
    for _ in range(getattr(kernel, "passes", 1)):
        if state is not None:
            shapes = {name: position[name].shape for name in state.names}
            noise = tree.unravel(kernel.product(compiled, compiled.num_data, state), shapes)
        state, clamped = bound.init(position, noise), 0
        for batch in batches:
            state, info = bound.update(state, batch, (), Settings(None, kernel.temperature))
            clamped += int(info.clamped)
    found = kernel.approximate(compiled, compiled.num_data, state)
    slope = {name: tree.unravel(gradient, rows.shapes)[name].unsqueeze(0) for name in position}
    moving = {name: leaf for name, leaf in position.items() if name not in getattr(found.gaussian, "held", {})}
    size = tree.size(moving)
    evidence = None
    if kernel.temperature == 1:
        evidence = float(value) + (size * math.log(2 * math.pi) + float(found.gaussian.log_det)) / 2
    norm = float(tree.ravel({name: slope[name] for name in moving}).norm())
    away = _away(found.gaussian, slope) / math.sqrt(kernel.temperature * size)
    checks = [_of_mode(away, norm), *_of_precision(found.clamped), *_of_outputs(clamped)]
    return LaplaceFit(found.gaussian, evidence, norm, checks)


def refuse(compiled: CompiledModel, kernel: Any, position: Position) -> None:
    """Raises what `laplace_at` would, as far as it can be told before a mode is known.

    Raises:
        ArgumentError, MinibatchError, ModelError: as `laplace_at`.
    """
    kernel.chosen(position)
    if isinstance(compiled.data, Streamed):
        raise ArgumentError(
            "Laplace's approximation goes over all rows at the mode, and a DataLoader brings them shuffled, batch by "
            "batch. Pass the data as tensors, or memory-mapped arrays, and a batch_size."
        )
    if compiled.local and compiled.batch_size is not None:
        raise MinibatchError(
            f"Site '{min(compiled.local)}' has a value for each row, and Laplace's approximation is one of all rows at "
            "once. Use batch_size=None, or method='vi_diag', which goes through minibatches."
        )
    few = None if _at_once(compiled) else torch.arange(min(2, compiled.num_data), device="cpu")
    rows = compiled.num_data if few is None else len(few)
    with torch.no_grad():
        if kernel.curvature == "ggn":
            compiled.information(position, compiled.batch(few))
        elif kernel.curvature == "fisher":
            check_rows(compiled.log_likelihood(position, compiled.batch(few)), rows)


def _at_once(compiled: CompiledModel) -> bool:
    return compiled.structure.minibatch_error is not None or bool(compiled.local)


def blocks(compiled: CompiledModel, size: int) -> list[Batch]:
    """All rows once, in blocks where the model allows."""
    if _at_once(compiled):
        return [compiled.batch()]
    number = max(compiled.batch_size or 0, min(MOST_ROWS, BLOCK_NUMBERS // size), LEAST_ROWS)
    return [compiled.batch(some) for some in torch.arange(compiled.num_data, device="cpu").split(number)]


def _normals(shapes: Any, position: Position, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator, dtype=position[name].dtype, device="cpu").to(
            position[name].device
        )
        for name, shape in dict(shapes).items()
    }


def _away(gaussian: Gaussian, slope: Position) -> float:
    """Length of the way to the maximum of the log posterior's expansion, in standard deviations."""
    spread = gaussian.spread(slope)
    return math.sqrt(float(sum_of_squares(spread, {name: leaf.shape[1:] for name, leaf in spread.items()})[0]))


def _of_mode(away: float, norm: float) -> Check:
    remedy = (
        f"the fit has not reached a mode (gradient norm {norm:.3g}), and the normal stands beside the posterior. Raise "
        "warmup_steps, or start nearer by initial=."
    )
    return at_most("distance from the mode, in sds", away, MOST_AWAY, "", remedy)


def _of_precision(clamped: dict[str, int]) -> list[Check]:
    sites = ", ".join(f"'{name}' ({number})" for name, number in clamped.items())
    remedy = (
        f"the precision was not positive in directions of {sites}; its absolute value stands there, or the smallest "
        "that can be told from 0. Neither prior nor rows say how wide they are, or the position is no maximum: give "
        "proper priors, raise warmup_steps, or use curvature='ggn'."
    )
    return [at_most("directions without positive precision", sum(clamped.values()), 0, "", remedy)] if clamped else []


def _of_outputs(clamped: int) -> list[Check]:
    remedy = (
        "the log-likelihood of these is not concave in the parameters of its distribution, and adds nothing there. "
        "curvature='hessian' keeps it."
    )
    return [at_most("outputs without positive information", clamped, 0, "", remedy)] if clamped else []
