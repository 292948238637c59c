r"""The generalised Gauss-Newton matrix of a batch by a root: $R^\top R = J^\top H J$ of its outputs.

J is the Jacobian of the outputs, the parameters of the observed sites' distributions, in the position, and H minus the
Hessian of the log-likelihood in the outputs, without its negative eigenvalues: $R = H^{1/2} J$.
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
    """R of the rows of the batch, each once; `(outputs, d)`, in the order of the sites."""
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
    moved = (jacobian != 0).any(1)  # the Hessian in an output that no site moves, as a known scale, is not asked for
    information = hessian(minus_log_prob)(_joined(like).detach())[moved][:, moved]
    values, vectors = torch.linalg.eigh((information + information.T) / 2)
    root: Tensor = values.clamp(min=0).sqrt().unsqueeze(1) * vectors.T @ jacobian[moved]
    return root


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
