"""A starting point with a finite log density and gradient, and whose fault it is where there is none."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.func import grad

from pyro_scale.data import names_of
from pyro_scale.derivative import grad_and_value
from pyro_scale.errors import StartError
from pyro_scale.handlers import Run, near_zero
from pyro_scale.records import log_prob
from pyro_scale.types import Batch, Position

if TYPE_CHECKING:
    from pyro_scale.compile import CompiledModel

ATTEMPTS = 100
PERMUTED_ROWS = 2**17
"""Of more rows than these those of a first batch are drawn without a permutation of all."""
LinAlgError: type[RuntimeError] = vars(torch.linalg)["LinAlgError"]
"""What torch raises for a matrix that is not positive definite; its annotations hide the name."""
Density = Callable[[Position], Tensor]


def find_start(compiled: CompiledModel, seed: int) -> Position:
    """The first of at most `ATTEMPTS` positions near 0 at which log density and gradient are finite.

    Raises:
        StartError: none was finite; names the site.
    """
    rows, draw = candidates(compiled, seed)
    batch = compiled.batch(rows)
    for _ in range(ATTEMPTS):
        position = draw()
        if is_finite_or_fails(compiled, position, batch):
            return position
    raise no_start(compiled, position, batch, f"in {ATTEMPTS} attempts within 2 of 0 in unconstrained space")


def candidates(compiled: CompiledModel, seed: int) -> tuple[Tensor | None, Callable[[], Position]]:
    """Rows on which a start is tried, None for all, and starts: uniform within 2 of 0, one after another."""
    generator = torch.Generator().manual_seed(seed)
    place = torch.zeros((), dtype=compiled.data.dtype, device=compiled.data.device)
    rows = None
    if compiled.num_data <= PERMUTED_ROWS:  # in full batch too: the starts do not depend on the batch size
        rows = torch.randperm(compiled.num_data, generator=generator, device="cpu")[: compiled.batch_size]
    elif compiled.batch_size is not None:
        rows = torch.randint(compiled.num_data, (compiled.batch_size,), generator=generator, device="cpu")

    def draw() -> Position:
        return {name: near_zero(shape, generator, place) for name, shape in compiled.latent.items()}

    return (rows if compiled.batch_size is not None else None), draw


def is_finite(compiled: CompiledModel, position: Position, batch: Batch) -> Tensor:
    """Whether log density and gradient are finite on a batch, at a position that holds all rows; 0-d."""
    gradient, value = grad_and_value(compiled)(compiled.at_rows(position, batch.indices), batch)
    return torch.stack([torch.isfinite(leaf).all() for leaf in (value, *gradient.values())]).all()


def is_finite_or_fails(compiled: CompiledModel, position: Position, batch: Batch) -> Tensor:
    """As `is_finite`; not so where the model raises for a matrix that is not positive definite."""
    try:
        return is_finite(compiled, position, batch)
    except LinAlgError:
        return torch.tensor(False)


def no_start(
    compiled: CompiledModel,
    position: Position,
    batch: Batch,
    where: str,
    remedy: str = "Check that the prior allows the data, or rescale.",
) -> StartError:
    """The error that tells whose fault it is; `where` the starts were sought."""
    reason = compiled.blame(compiled.at_rows(position, batch.indices), batch)
    return StartError(f"No start with a finite log density and gradient {where}: {reason}. {remedy}")


def blame(position: Position, density: Density, terms: Callable[[Position], Run]) -> str:
    """Which site's log density or gradient is not finite at a position, in words."""
    try:
        with torch.no_grad():
            totals = {name: log_prob(site).sum() for name, site in terms(position).sites.items()}
        gradient = grad(density)(position)
    except LinAlgError as error:
        return f"the model raises {type(error).__name__.lstrip('_')}: {str(error).rstrip('.')}"
    for name, total in totals.items():
        if not torch.isfinite(total):
            return f"site '{name}' has log density {float(total):g}"
    bad = [name for name, leaf in gradient.items() if not torch.isfinite(leaf).all()]
    return f"the gradient is not finite at {names_of(bad)}" if bad else "the Jacobian of a transform is not finite"
