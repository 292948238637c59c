"""A generalised Gauss-Newton matrix in full, from the gradients of rows; for some thousand coordinates."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pyro_scale.curvature.jacobian import Linearised


def dense(batch: Linearised) -> Tensor:
    r"""$\sum_n \sum_c J_n^\top S_{n,c} S_{n,c}^\top J_n$, unscaled; `(d, d)` in the order of the sites."""
    size = sum(leaf.numel() for leaf in batch.leaves.values())
    first = next(iter(batch.leaves.values()))
    total = torch.zeros(size, size, dtype=first.dtype, device=first.device)
    for rows in gradients_of_rows(batch):
        total.addmm_(rows.T, rows)
    return total


def gradients_of_rows(batch: Linearised) -> Iterator[Tensor]:
    r"""$J_n^\top S_{n,c}$ of the rows, `(n, d)`, column by column."""
    layers, names = batch.explained, batch.others
    columns: dict[int, Tensor] = {}
    for one in batch.information.values() if names else ():
        parts = [part for _, part in batch.jacobian(one.outputs, names)]
        if parts:
            columns[id(one.outputs)] = torch.cat(parts)
    for outputs, cotangent in batch.cotangents():
        by_site = {name: leaf.new_zeros(batch.num_rows, leaf.numel()) for name, leaf in batch.leaves.items()}
        gradients = batch.at_layers(layers, outputs, cotangent)
        for name, uses in layers.items():
            by_site[name] = batch.by_row(name, uses, gradients).reshape(batch.num_rows, -1)
        if id(outputs) in columns:
            rows = torch.einsum("pnek,nek->np", columns[id(outputs)], cotangent)
            sizes = [batch.leaves[name].numel() for name in names]
            by_site |= dict(zip(names, rows.split(sizes, 1), strict=True))
        yield torch.cat(list(by_site.values()), 1)
