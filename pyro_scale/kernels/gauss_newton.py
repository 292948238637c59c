r"""The generalised Gauss-Newton matrix of a batch: $J^\top H J$ of its outputs, as extended Kalman filters take it.

J is the Jacobian of the outputs, the parameters of the observed sites' distributions, in the position, and H minus the
Hessian of the log-likelihood in the outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import hessian, jacrev
from torch.utils import _pytree as pytree

from pyro_scale import tree
from pyro_scale.types import Position


def gauss_newton(target: Any, position: Position, batch: Any) -> Tensor:
    """Of the rows of the batch, each once; `(d, d)`, in the order of the sites."""
    shapes = tree.shapes(position)
    like, structure = pytree.tree_flatten(target.outputs(position, batch))

    def outputs(vector: Tensor) -> Tensor:
        return _joined(pytree.tree_leaves(target.outputs(tree.unravel(vector, shapes), batch)))

    def minus_log_prob(values: Tensor) -> Tensor:
        parts = values.split([leaf.numel() for leaf in like])
        leaves = [part.reshape(leaf.shape) for part, leaf in zip(parts, like, strict=True)]
        terms = target.output_log_prob(pytree.tree_unflatten(leaves, structure), batch)
        return -torch.stack([term.sum() for term in terms.values()]).sum()

    jacobian = jacrev(outputs)(tree.ravel(position))
    information = hessian(minus_log_prob)(_joined(like).detach())
    found: Tensor = jacobian.T @ information @ jacobian
    return (found + found.T) / 2


def log_likelihood(target: Any, position: Position, batch: Any) -> Tensor:
    """Of the rows of the batch, each once, in nats; 0-d."""
    return torch.stack([values.sum() for values in target.log_likelihood(position, batch).values()]).sum()


def negative_hessian(function: Callable[[Position], Tensor], position: Position) -> Tensor:
    """Of a function of a position, `(d, d)`, in the order of the sites."""
    shapes = tree.shapes(position)
    found: Tensor = -hessian(lambda vector: function(tree.unravel(vector, shapes)))(tree.ravel(position))
    return found


def _joined(leaves: list[Tensor]) -> Tensor:
    return torch.cat([leaf.reshape(-1) for leaf in leaves])
