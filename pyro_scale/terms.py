"""The log density of one run in three parts: what enters once, what local sites add by row, and the likelihood."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_scale.enumeration import summed_out
from pyro_scale.handlers import Run
from pyro_scale.records import log_prob
from pyro_scale.rows import by_row
from pyro_scale.sites import Structure


class Terms(NamedTuple):
    """Log densities in nats, unscaled.

    Attributes:
        once: 0-d; priors and log Jacobians of the sites that no row enters, and factors outside the plate; or the log
            density of what stands in their place.
        local: `(n,)`, or 0-d without such sites; priors and log Jacobians of the sites with a value a row.
        likelihood: observed site or factor -> `(n,)`; `(1,)` for a joint event over all rows.
    """

    once: Tensor
    local: Tensor
    likelihood: dict[str, Tensor]


def terms_of(found: Run, structure: Structure, num_rows: int) -> Terms:
    """The terms of a run on `num_rows` rows; discrete latent sites are summed out."""
    once: list[Tensor] = []
    local: list[Tensor] = []
    likelihood: dict[str, Tensor] = {}
    densities = _marginal(found, structure, num_rows)
    for name, record in found.sites.items():
        site = structure.sites[name]
        if site.kind in ("deterministic", "enumerated"):
            continue
        density = densities.get(name)
        if site.rows is not None:
            rows = by_row(record, site.rows) if density is None else density
            if site.kind == "latent":
                (local if rows.ndim else once).append(rows)  # a sum that couples all rows is one number
            else:
                likelihood[name] = rows.reshape(-1)
            continue
        total = log_prob(record).sum() if density is None else density.sum()
        if site.kind == "observed" and structure.minibatch_error is not None:
            likelihood[name] = total.reshape(1)
        else:
            once.append(total)
    for name, jacobian in found.log_jacobian.items():
        axis = structure.sites[name].axis
        if axis is None:
            once.append(jacobian.sum())
        else:
            local.append(jacobian.movedim(axis, 0).reshape(jacobian.shape[axis], -1).sum(1))
    if structure.prior is not None:
        position = {site.name: found.position[site.name] for site in structure.of_kind("latent")}
        once = [structure.prior.log_prob(position)]
    zero = torch.zeros(()) if not found.log_jacobian else next(iter(found.log_jacobian.values())).new_zeros(())
    return Terms(sum(once, zero), sum(local, zero), likelihood)


def _marginal(found: Run, structure: Structure, num_rows: int) -> dict[str, Tensor]:
    """Site -> log density given the sites before it, of the sites that discrete ones touch."""
    if not structure.of_kind("enumerated"):
        return {}
    groups = summed_out(found.sites, structure.row_dim, num_rows)
    return {name: density for group in groups for name, density in zip(group.names, group.densities, strict=True)}
