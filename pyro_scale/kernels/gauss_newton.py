r"""The generalised Gauss-Newton matrix of a batch by a root: $R^\top R = J^\top H J$ of its outputs.

J is the Jacobian of the outputs, the parameters of the observed sites' distributions, in the position, and H minus the
Hessian of the log-likelihood in the outputs, without its negative eigenvalues: $R = H^{1/2} J$.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pyro_scale import tree
from pyro_scale.types import Position


@torch.enable_grad()
def information_root(target: Any, position: Position, batch: Any) -> Tensor:
    """R of the rows of the batch, each once; `(outputs, d)`, in the order of the sites."""
    here = tree.ravel(position).detach().requires_grad_()
    leaves, structure = pytree.tree_flatten(target.outputs(tree.unravel(here, tree.shapes(position)), batch))
    outputs = torch.cat([leaf.reshape(-1) for leaf in leaves])
    jacobian = _jacobian(outputs, here)
    moved = (jacobian != 0).any(1)  # the Hessian in an output that no site moves, as a known scale, is not asked for
    there = outputs.detach().requires_grad_()
    parts = there.split([leaf.numel() for leaf in leaves])
    given = [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
    terms = target.output_log_prob(pytree.tree_unflatten(given, structure), batch)
    minus = -torch.stack([term.sum() for term in terms.values()]).sum()
    (slope,) = torch.autograd.grad(minus, there, create_graph=True)
    information = _jacobian(slope, there)[moved][:, moved]
    values, vectors = torch.linalg.eigh((information + information.T) / 2)
    root: Tensor = values.clamp(min=0).sqrt().unsqueeze(1) * vectors.T @ jacobian[moved]
    return root


def log_likelihood(target: Any, position: Position, batch: Any) -> Tensor:
    """Of the rows of the batch, each once, in nats; 0-d."""
    return torch.stack([values.sum() for values in target.log_likelihood(position, batch).values()]).sum()


@torch.enable_grad()
def negative_hessian(function: Callable[[Position], Tensor], position: Position) -> Tensor:
    """Of a function of a position, `(d, d)`, in the order of the sites."""
    here = tree.ravel(position).detach().requires_grad_()
    value = function(tree.unravel(here, tree.shapes(position)))
    (slope,) = torch.autograd.grad(value, here, create_graph=True)
    return -_jacobian(slope, here)


def _jacobian(values: Tensor, variables: Tensor) -> Tensor:
    """Of a vector in another, row by row: what vectorises rows imports torch's compiler."""
    if not values.requires_grad:
        return variables.new_zeros(len(values), len(variables))
    rows = [torch.autograd.grad(one, variables, retain_graph=True, materialize_grads=True)[0] for one in values]
    return torch.stack(rows).detach()
