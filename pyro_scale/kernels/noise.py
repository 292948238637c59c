"""The noise a stochastic gradient kernel adds: what the target law needs, less what the minibatch gradient brings."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_scale import tree
from pyro_scale.errors import ArgumentError
from pyro_scale.schedules import check_number
from pyro_scale.types import Position, Shapes


def check_variance(owner: str, value: float | dict[str, Any]) -> None:
    """Refuses a gradient variance that is negative, NaN or of another type."""
    if not isinstance(value, dict):
        check_number(owner, "gradient_variance", value)
        return
    for name, leaf in value.items():
        if not isinstance(leaf, Tensor):
            raise ArgumentError(f"{owner}: gradient_variance['{name}'] is {leaf!r}; it must be a tensor.")
        if not (torch.isfinite(leaf).all() and (leaf >= 0).all()):
            raise ArgumentError(f"{owner}: gradient_variance['{name}'] holds a negative or non-finite value.")


def noise_shape(owner: str, gradient_variance: float | Position, position: Position) -> Shapes:
    """One standard normal a coordinate; refuses a gradient variance that does not fit the position."""
    if isinstance(gradient_variance, dict):
        for name, leaf in position.items():
            got = tuple(gradient_variance[name].shape) if name in gradient_variance else None
            if got not in ((), tuple(leaf.shape)):
                found = "is missing" if got is None else f"has shape {got}"
                raise ArgumentError(
                    f"{owner}: gradient_variance['{name}'] {found}; it must have the unconstrained site's shape "
                    f"{tuple(leaf.shape)}, or ()."
                )
    return tree.shapes(position)


def injected_sd(
    variance: Any, step_size: Any, gradient_variance: float | Position, noise: Position
) -> tuple[Position, Tensor]:
    r"""$\sqrt{\max(0, \text{variance} - \text{step\_size}^2 V)}$, and how many coordinates were clamped at 0.

    0-d where it is the same for all coordinates: the noise itself, scaled site by site, is never in memory twice.

    Args:
        variance: what one step must add in all for the target law; a scalar or 0-d tensor.
        step_size: the gradient enters the step with this factor.
        gradient_variance: V, a number or a tensor a site.
        noise: standard normals.
    """
    first = next(iter(noise.values()))
    total = torch.as_tensor(variance, dtype=first.dtype, device=first.device)
    if not isinstance(gradient_variance, dict) and gradient_variance == 0:
        sd = total.sqrt()
        return tree.map(lambda _: sd, noise), torch.zeros((), dtype=torch.long, device=first.device)
    remaining = tree.map(lambda v: (total - step_size**2 * v).to(v.dtype), tree.full_like(noise, gradient_variance))
    clamped = sum((leaf < 0).sum() for leaf in remaining.values())
    return tree.map(lambda left: left.clamp(min=0).sqrt(), remaining), torch.as_tensor(clamped)


def no_noise(position: Position) -> Shapes:
    """What a kernel asks for that takes none."""
    return {}
