"""Products of a generalised Gauss-Newton matrix with vectors."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_scale import tree
from pyro_scale.curvature.jacobian import Linearised, columns


def products(batch: Linearised, vectors: Tensor) -> Tensor:
    r"""$\sum_n J_n^\top S_n S_n^\top J_n v$, unscaled, of vectors `(k, d)` in the order of the sites, `(k, d)`.

    J v comes from the product with the transpose, which is differentiated in what it is multiplied by.
    """
    leaves = list(batch.leaves.values())
    total = torch.zeros_like(vectors)
    for one in batch.information.values():
        with torch.enable_grad():
            dual = torch.zeros_like(one.outputs, requires_grad=True)
            gradients = torch.autograd.grad(
                one.outputs, leaves, dual, create_graph=True, materialize_grads=True, allow_unused=True
            )
            gradient = torch.cat([leaf.reshape(-1) for leaf in gradients])
        moved = columns(gradient, dual, vectors)
        pulled = torch.einsum("nekr,nelr,vnel->vnek", one.root, one.root, moved)
        for index, cotangent in enumerate(pulled):
            found = torch.autograd.grad(
                one.outputs, leaves, cotangent, retain_graph=True, materialize_grads=True, allow_unused=True
            )
            total[index] += tree.ravel(dict(zip(batch.leaves, found, strict=True)))
    return total
