"""A starting point with a finite log density and gradient, and whose fault it is where there is none."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import grad, grad_and_value

from pyro_scale import tree
from pyro_scale.data import names_of
from pyro_scale.errors import StartError
from pyro_scale.handlers import Run
from pyro_scale.records import log_prob
from pyro_scale.types import Position

ATTEMPTS = 100
LinAlgError: type[RuntimeError] = vars(torch.linalg)["LinAlgError"]
"""What torch raises for a matrix that is not positive definite; its annotations hide the name."""
Density = Callable[[Position], Tensor]


def find_start(draw: Callable[[], Position], density: Density, terms: Callable[[Position], Run]) -> Position:
    """The first of at most `ATTEMPTS` positions drawn at which log density and gradient are finite.

    Args:
        draw: a random position.
        density: the log posterior.
        terms: a run of the model, for the message.

    Raises:
        StartError: none was finite; names the site.
    """
    for _ in range(ATTEMPTS):
        position = draw()
        try:
            gradient, value = grad_and_value(density)(position)
        except LinAlgError:  # a matrix that is not positive definite here
            continue
        if torch.isfinite(tree.ravel(gradient)).all() and torch.isfinite(value):
            return position
    raise StartError(
        f"No start with a finite log density and gradient in {ATTEMPTS} attempts within 2 of 0 in unconstrained "
        f"space: {blame(position, density, terms)}. Check that the prior allows the data, or rescale."
    )


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
