r"""Control variates for the gradient of a minibatch.

With an anchor $\hat\theta$, at which the gradient of all rows is known,

$$\log p(\theta \mid \text{batch}) - \log p(\hat\theta \mid \text{batch}) + \log p(\hat\theta)
- (\theta - \hat\theta)^\top (\nabla \log p(\hat\theta \mid \text{batch}) - \nabla \log p(\hat\theta))$$

estimates $\log p(\theta)$ without bias, as the minibatch does, and its gradient differs from that of all rows by what
the rows' curvatures differ, times the distance from the anchor: Baker et al. (2019), equation 4. Near the mode of N
rows, that is within $O(N^{-1/2})$ of it, the variance of the gradient is smaller by a factor of order N.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_scale import tree
from pyro_scale.derivative import grad_and_value
from pyro_scale.row_coordinates import RowCoordinates
from pyro_scale.types import Anchor, Batch, LogPosterior, Position
from pyro_scale.whitening import Whitened


class ControlVariate:
    """A target whose minibatches are corrected by what they miss at the anchor that they carry.

    Args:
        target: an unbiased estimate of the log posterior from a batch. Sites that an anchor lacks, as those of rows,
            are at 0 there, and have no noise.

    Example:
        >>> def squares(position, batch):
        ...     return -batch.scale * ((position["x"] - batch.data["y"]) ** 2).sum()
        >>> target = ControlVariate(squares)
        >>> zero = torch.zeros(())
        >>> anchor = Anchor({"x": zero}, {"x": zero}, -torch.tensor(2.0))  # of the two rows y = -1 and y = 1
        >>> float(target({"x": torch.tensor(3.0)}, Batch({"y": torch.ones(1)}, torch.ones(1), 2.0, anchor)))
        -20.0

    References:
        Baker, Fearnhead, Fox & Nemeth (2019), Control variates for stochastic gradient MCMC, Statistics and Computing.
    """

    def __init__(self, target: LogPosterior) -> None:
        self.target = target

    def __call__(self, position: Position, batch: Batch) -> Tensor:
        anchor = batch.anchor
        assert isinstance(anchor, Anchor)
        rest = {name: torch.zeros_like(leaf) for name, leaf in position.items() if name not in anchor.position}
        gradient, log_posterior = grad_and_value(self.target)({**anchor.position, **rest}, batch)
        missed = [
            ((position[name] - at) * (anchor.gradient[name] - gradient[name])).sum()
            for name, at in anchor.position.items()
        ]
        return self.target(position, batch) + anchor.log_posterior - log_posterior + torch.stack(missed).sum()


class Frame(NamedTuple):
    """What chains move in: coordinates, and where their control variates know the gradient of all rows.

    Attributes:
        whitened: the coordinates; None for the unconstrained ones.
        anchor: of every chain, leaves with a leading chain axis, in these coordinates; `()` without control variates.
    """

    whitened: Whitened | RowCoordinates | None = None
    anchor: Anchor | tuple[()] = ()


def without_all_rows(positions: Position, local: Collection[str] = ()) -> Anchor:
    """Anchors at positions `(n, *site)` that lack the gradient of all rows: a constant, which is no noise.

    They have none of the sites in `local`, as `anchor_at`.
    """
    positions = {name: leaf for name, leaf in positions.items() if name not in local}
    first = next(iter(positions.values()))
    return Anchor(positions, tree.map(torch.zeros_like, positions), first.new_zeros(len(first)))


def anchor_at(target: LogPosterior, blocks: Sequence[Batch], position: Position, local: Collection[str] = ()) -> Anchor:
    """An anchor at a position.

    Args:
        target: without control variates.
        blocks: all rows once, as from `hessian.row_blocks`.
        position: in the coordinates of the target.
        local: sites whose values are the rows' own, 0 at the position. They are left out: a minibatch has their whole
            gradient, and there is nothing to correct.
    """
    gradient = tree.map(torch.zeros_like, position)
    log_posterior = torch.zeros((), dtype=next(iter(position.values())).dtype, device=blocks[0].indices.device)
    for block in blocks:
        # whatever does not follow the rows is in every block, and n / N of it is the block's
        slope, value = grad_and_value(target)(position, block)
        gradient = tree.map(lambda g, s, block=block: g + s / block.scale, gradient, slope)
        log_posterior = log_posterior + value / block.scale
    shared = [name for name in position if name not in local]
    return Anchor({name: position[name] for name in shared}, {name: gradient[name] for name in shared}, log_posterior)
