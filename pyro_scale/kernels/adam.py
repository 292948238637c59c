r"""Adam: Kingma & Ba (2015), algorithm 1, for slopes to climb.

With a slope g, at step t counted from 1,

$$m \leftarrow \beta_1 m + (1 - \beta_1) g, \qquad v \leftarrow \beta_2 v + (1 - \beta_2) g^2, \qquad
\text{direction} = \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + \delta}.$$

Directions are of about 1 while slopes are larger than $\delta$, and in proportion to slopes that are smaller.

References:
    Kingma & Ba (2015), Adam: a method for stochastic optimization, ICLR.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_scale import tree
from pyro_scale.types import Position

DECAYS = (0.9, 0.999)
DAMPING = 1e-8


class Moments(NamedTuple):
    """Running means of the slopes of one tree and of their squares, m and v."""

    mean: Position
    square: Position


def no_moments(like: Position) -> Moments:
    """Before the first step."""
    return Moments(tree.map(torch.zeros_like, like), tree.map(torch.zeros_like, like))


def direction(
    slope: Position, mean: Position, square: Position, count: Tensor, damping: float = DAMPING
) -> tuple[Position, Moments]:
    """Where to go, and the moments after it.

    Args:
        slope: g.
        mean, square: m and v before the step.
        count: t; 0-d.
        damping: delta, in units of the slope.
    """
    first, second = DECAYS
    mean = tree.map(lambda m, g: first * m + (1 - first) * g, mean, slope)
    square = tree.map(lambda v, g: second * v + (1 - second) * g * g, square, slope)

    def towards(m: Tensor, v: Tensor) -> Tensor:
        steps = count.to(m.dtype)
        result: Tensor = (m / (1 - first**steps)) / ((v / (1 - second**steps)).sqrt() + damping)
        return result

    return tree.map(towards, mean, square), Moments(mean, square)
