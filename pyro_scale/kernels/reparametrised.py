r"""What variational methods have in common: the gradient of the log posterior at draws of q, and their objective.

A normal $q$ of $\theta = \mu + F z$, with standard normals z, maximises $E_q[\log p(\theta)] - T E_q[\log q(\theta)]$:
at temperature T = 1 the evidence lower bound of Kucukelbir et al. (2017), equation 5, at most the log evidence.

In the coordinates of z the slope at a draw is $F^\top \nabla \log p(\theta)$, a number of nats per standard deviation
of q, and $F^\top \nabla \log p(\theta) + T z$ once the score of q is left out, whose mean over z is 0: Roeder, Wu &
Duvenaud (2017), section 3. That one vanishes at every draw where q is the posterior, so that minibatches are all the
noise that is left. In these units the Fisher information of the mean is the identity and that of the log scale twice
it: steps in proportion to slopes are natural gradients, and a slope of 1 is where `adam.direction` turns from them to
steps of bounded length.

References:
    Kucukelbir, Tran, Ranganath, Gelman & Blei (2017), Automatic differentiation variational inference, JMLR.
    Roeder, Wu & Duvenaud (2017), Sticking the landing: simple, lower-variance gradient estimators for variational
    inference, NeurIPS.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from pyro_scale import tree
from pyro_scale.checks import check_count
from pyro_scale.derivative import grad_and_value
from pyro_scale.errors import ArgumentError
from pyro_scale.gaussians.normals import log_density, sum_of_squares
from pyro_scale.schedules import as_schedule, check_number
from pyro_scale.types import LogPosterior, Position, Shapes

DAMPING = 1.0
"""Of slopes, in nats per standard deviation of q."""


def check(kernel: Any) -> None:
    """Checks the settings that all variational methods have."""
    owner = type(kernel).__name__
    if kernel.step_size is not None:
        as_schedule(owner, "step_size", kernel.step_size, positive=True)
    check_count(f"{owner}: num_particles", kernel.num_particles, 1)
    if type(kernel.stick_the_landing) is not bool:
        raise ArgumentError(f"{owner}: stick_the_landing is {kernel.stick_the_landing!r}; it must be True or False.")
    as_schedule(owner, "temperature", kernel.temperature)


def check_scale(owner: str, value: Any) -> None:
    """Refuses sds at the start that are not positive."""
    if value is None:
        return
    if not isinstance(value, (dict, Tensor)):
        check_number(owner, "initial_sd", value, positive=True)
        return
    leaves = value if isinstance(value, dict) else {"": value.diagonal()}
    for name, leaf in leaves.items():
        if not (isinstance(leaf, Tensor) and bool((torch.isfinite(leaf) & (leaf > 0)).all())):
            raise ArgumentError(
                f"{owner}: initial_sd of '{name}' is {leaf!r}; it must be a tensor of positive numbers."
            )


def noise_shape(num_particles: int, position: Position) -> Shapes:
    """Standard normals of each draw."""
    return {name: torch.Size((num_particles, *leaf.shape)) for name, leaf in position.items()}


def gradients(target: LogPosterior, draws: Position, batch: Any) -> tuple[Position, Tensor]:
    """Of the log posterior at draws `(num_particles, *site)`, and its values."""
    if len(next(iter(draws.values()))) == 1:  # a model need not be one that can be vectorised
        gradient, value = grad_and_value(target)(tree.map(lambda leaf: leaf.squeeze(0), draws), batch)
        return tree.map(lambda leaf: leaf.unsqueeze(0), gradient), value.unsqueeze(0)
    found: tuple[Position, Tensor] = vmap(grad_and_value(target), in_dims=(0, None))(draws, batch)
    return found


def objective(values: Tensor, noise: Position, log_det: Tensor, temperature: Any) -> Tensor:
    """Mean of log posterior minus temperature times log q, in nats; 0-d.

    Args:
        values: of the log posterior, `(num_particles,)`.
        noise: that led to the draws, `(num_particles, *site)`.
        log_det: of the covariance of q.
        temperature: T.
    """
    shapes = {name: leaf.shape[1:] for name, leaf in noise.items()}
    size = sum(shape.numel() for shape in shapes.values())
    mean: Tensor = (values - temperature * log_density(sum_of_squares(noise, shapes), log_det, size)).mean()
    return mean
