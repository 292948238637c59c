"""The log-likelihood of chosen rows at every draw: what is summed over rows never stands in memory for all of them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from pyro_scale.compile import CompiledModel
from pyro_scale.data import names_of
from pyro_scale.draws import over_draws
from pyro_scale.errors import ArgumentError, ModelError
from pyro_scale.values import evenly_spaced

from .psis import Array

BLOCK_NUMBERS = 2**21
"""Draws times rows that are looked at side by side."""


class RowDensities:
    """Log-likelihood of rows, summed over observed sites: what leaves the posterior with a row.

    Args:
        compiled: the model with all rows.
        draws: latent site -> constrained values, `(num_draws, *site)`.
        sites: observed sites (or factors over rows) that count; None for all.

    Raises:
        ArgumentError: a site that is not observed, row by row.
        ModelError: the rows have one joint term.
    """

    def __init__(self, compiled: CompiledModel, draws: dict[str, Tensor], sites: Collection[str] | None = None) -> None:
        self.compiled = compiled
        self.draws = draws
        self.num_draws = len(next(iter(draws.values())))
        self.whole = compiled.structure.minibatch_error is not None
        self.sites = self._checked(sites)

    def thinned(self, num_draws: int) -> tuple[RowDensities, Array]:
        """The same for that many of the draws, evenly spaced, and which they are."""
        chosen = evenly_spaced(self.num_draws, num_draws)
        few = {name: value[torch.from_numpy(chosen).to(value.device)] for name, value in self.draws.items()}
        return RowDensities(self.compiled, few, self.sites), chosen

    def blocks(self, indices: Tensor) -> list[Tensor]:
        """Rows in blocks that may be looked at at once."""
        return list(indices.split(max(1, BLOCK_NUMBERS // self.num_draws)))

    def at(self, indices: Tensor) -> Array:
        """Of these rows, `(n, num_draws)`, in nats, in double precision.

        Raises:
            ModelError: one is not finite.
        """
        compiled, draws = self._on(indices)

        def total(draw: dict[str, Tensor]) -> Tensor:
            found = compiled.log_likelihood_at(draw)
            each = torch.stack([found[name] for name in self.sites]).sum(0)
            return each[indices] if self.whole else each

        values: Tensor = over_draws(total, draws, num_rows=compiled.num_data)
        finite = values.isfinite()
        if not finite.all():
            place = int((~finite).any(0).nonzero()[0])
            raise ModelError(
                f"The log-likelihood of row {int(indices[place])} is not finite at {int((~finite[:, place]).sum())} of "
                f"{self.num_draws} draws. Observe it by a distribution whose support does not depend on the parameters,"
                " or leave the row out of the data."
            )
        return np.ascontiguousarray(values.double().cpu().numpy().T)

    def _on(self, indices: Tensor) -> tuple[CompiledModel, dict[str, Tensor]]:
        """The model on these rows, or on all where it does not split, and the values that it takes."""
        if self.whole:
            return self.compiled, self.draws
        data = self.compiled.data
        rows = replace(data, rows=data.take(indices), num_data=len(indices))
        local = self.compiled.local
        values = {
            name: value.index_select(1 + local[name], indices) if name in local else value
            for name, value in self.draws.items()
        }
        return self.compiled.on(rows), values

    def _checked(self, sites: Collection[str] | None) -> list[str]:
        compiled, draws = self._on(torch.arange(1, device=self.compiled.data.device))
        with torch.no_grad():
            found = compiled.log_likelihood_at({name: value[0] for name, value in draws.items()})
        if isinstance(sites, str) or not set(found if sites is None else sites) <= found.keys():
            raise ArgumentError(
                f"sites is {sites!r}; it must be a list of names among {names_of(list(found))}, which are observed row "
                "by row, or None for all of them."
            )
        names = [name for name in found if sites is None or name in sites]
        if not names:
            raise ArgumentError(f"sites is empty; name some of {names_of(list(found))}, or pass None for all.")
        if joint := [name for name in names if found[name].shape != (compiled.num_data,)]:
            raise ModelError(
                f"The log-likelihood of site '{joint[0]}' is one term for all {compiled.num_data} rows, so that no row "
                "can be left out of it by itself. Give each row a term of its own, in a plate over the rows: "
                "independent of the others given the latent sites."
            )
        return names
