r"""What all normal distributions of positions have in common.

Each is $\theta = \mu + F \xi$: the structures differ in F, and in how its inverse and determinant are found.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_scale import tree
from pyro_scale.checks import check_count
from pyro_scale.types import Gaussian, Position


def sample(gaussian: Gaussian, n: int, generator: torch.Generator) -> Position:
    """`n` draws, leaves `(n, *site)`.

    Args:
        gaussian: what to draw from.
        n: how many; >= 1.
        generator: on the CPU: a seed gives the same draws on every device.

    Raises:
        ArgumentError: n is no whole number from 1 on.
    """
    n = check_count("n", n, 1)

    def normals(leaf: Tensor) -> Tensor:
        return torch.randn((n, *leaf.shape), generator=generator, dtype=leaf.dtype, device="cpu").to(leaf.device)

    held = getattr(gaussian, "held", {})
    return gaussian.transform({name: normals(leaf) for name, leaf in gaussian.mean.items() if name not in held})


def log_density(squares: Tensor, log_det: Tensor, num_coordinates: int) -> Tensor:
    """Of a normal distribution, in nats.

    Args:
        squares: sum of squares of the standard normals that lead to the position.
        log_det: of the covariance.
        num_coordinates: d.
    """
    return -(squares + log_det + num_coordinates * math.log(2 * math.pi)) / 2


def gram(rows: Position) -> Tensor:
    """Inner products of the k rows along the leading axis of a tree, `(k, k)`; of `spread` it is a covariance."""
    flat = [leaf.reshape(len(leaf), leaf[:1].numel()) for leaf in rows.values()]
    return torch.stack([leaf @ leaf.T for leaf in flat]).sum(0)


def sum_of_squares(noise: Position, shapes: dict[str, torch.Size]) -> Tensor:
    """Over all coordinates; leading axes stay."""
    sums = [
        leaf.square().sum(tuple(range(-len(shapes[name]), 0))) if shapes[name] else leaf.square()
        for name, leaf in noise.items()
    ]
    return torch.stack(sums).sum(0)
