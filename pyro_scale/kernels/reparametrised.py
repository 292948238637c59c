"""What variational methods estimate at draws of their normal: its objective, and the gradient of the log posterior."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import vmap

from pyro_scale import tree
from pyro_scale.derivative import grad_and_value
from pyro_scale.types import Gaussian, LogPosterior, Position, Shapes


class Estimate(NamedTuple):
    """At several draws of a normal q.

    Attributes:
        gradients: of the log posterior at each, leaves `(num_particles, *site)`.
        objective: mean of log posterior minus temperature times log q, in nats; 0-d.
    """

    gradients: Position
    objective: Tensor


def noise_shape(num_particles: int, position: Position) -> Shapes:
    """Standard normals of each draw."""
    return {name: torch.Size((num_particles, *leaf.shape)) for name, leaf in position.items()}


def estimate(target: LogPosterior, gaussian: Gaussian, batch: Any, noise: Position, temperature: Any) -> Estimate:
    """At the draws that standard normals `(num_particles, *site)` lead to."""
    draws = gaussian.transform(noise)
    if len(next(iter(noise.values()))) == 1:  # a model need not be one that can be vectorised
        gradient, value = grad_and_value(target)(tree.map(lambda leaf: leaf.squeeze(0), draws), batch)
        gradients, values = tree.map(lambda leaf: leaf.unsqueeze(0), gradient), value.unsqueeze(0)
    else:
        gradients, values = vmap(grad_and_value(target), in_dims=(0, None))(draws, batch)
    return Estimate(gradients, (values - temperature * gaussian.log_prob(draws)).mean())
