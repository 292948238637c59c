r"""Coordinates in which values of rows and what rows share are nearly independent, of curvature 1 per datum each.

What is shared is whitened, $\theta = c + L w$, and a row's values follow it: with $\delta = \theta - \hat\theta$,

$$z_i = \hat z_i + M_i \delta + \sqrt N S_i e^{\sigma_i \delta} u_i,$$

which is between the centred and the non-centred parametrisation as the row's data say: Papaspiliopoulos, Roberts &
Skold (2007). A minibatch can move its rows in them, since those do not depend on other rows, and a row's u leaves next
to no noise in the gradient of w. The density of (w, u) has the factor $\prod_i e^{\sigma_i \delta}$ more; at
temperature T its logarithm counts T times, as kernels sample the density to the power of 1 / T.

References:
    Papaspiliopoulos, Roberts & Skold (2007), A general framework for the parametrization of hierarchical models,
    Statistical Science.
"""

from __future__ import annotations

import math
from copy import copy
from typing import Any

import torch
from torch import Tensor

from pyro_scale import tree
from pyro_scale.conditional import Conditional, Expansion, Layout
from pyro_scale.mode import Mode
from pyro_scale.types import Position
from pyro_scale.whitening import Whitened


class RowCoordinates:
    """A target in the coordinates of `(w, u)`, with the attributes and methods of `Whitened` that a run takes.

    Its value is that of the target, its gradient that of the density of the coordinates; of u, that of full batch.

    Args:
        conditional: the model's rows.
        mode: of what is shared, with the negative Hessian of its marginal log posterior.
    """

    def __init__(self, conditional: Conditional, mode: Mode) -> None:
        compiled = self.target = conditional.compiled
        self.temperature = conditional.temperature
        self.layout: Layout = conditional.layout
        self.unit = math.sqrt(compiled.num_data)
        self.whitened = Whitened(None, mode, compiled.num_data)
        self.rows: Expansion = conditional.expansion(tree.ravel(mode.position))
        self.inverse = torch.linalg.inv(self.rows.factor)
        self.shapes = {name: compiled.latent[name] for name in (*conditional.shapes, *self.layout.axes)}

    @property
    def num_shared(self) -> int:
        """Coordinates of w, the first of a vector."""
        return len(self.whitened.center)

    def moved(self, center: Position, spread: Tensor) -> RowCoordinates:
        """Other coordinates of what is shared, as `Whitened.moved`; those of the rows stay."""
        result = copy(self)
        result.whitened = self.whitened.moved(self._shared(center), spread)
        return result

    def at_rows(self, position: Position, indices: Tensor) -> Position:
        """As `CompiledModel.at_rows`."""
        return self.target.at_rows(position, indices)

    def position(self, z: Position) -> Position:
        """The target's position, of all rows; leaves may have leading axes, which stay."""
        shared, center, widths = self._at(z, self.rows)
        along = widths * self.layout.matrix(z)
        return self._joined(shared, center + (self.rows.factor @ along.unsqueeze(-1)).squeeze(-1))

    def coordinates(self, position: Position) -> Position:
        """The inverse of `position`."""
        z = self.whitened.coordinates(self._shared(position))
        _, center, widths = self._at(z, self.rows)
        away = (self.layout.matrix(position) - center).unsqueeze(-1)
        return self._joined(z, (self.inverse @ away).squeeze(-1) / widths)

    def flat(self, leaves: Position) -> Tensor:
        """All coordinates along the last axis, w first."""
        return tree.flat(leaves, self.shapes)

    def unflat(self, flat: Tensor) -> Position:
        """The inverse of `flat`."""
        found = tree.unravel(flat, self.shapes)
        return {name: found[name] for name in self.target.latent}

    def __call__(self, z: Position, batch: Any) -> Tensor:
        rows = Expansion(self.rows.shared, *(part[batch.indices] for part in self.rows[1:]))
        shared, center, widths = self._at(z, rows)
        values = self.layout.matrix(z)
        held = values.detach()
        along = widths * (held + (values - held) / batch.scale)
        position = self._joined(shared, center + (rows.factor @ along.unsqueeze(-1)).squeeze(-1))
        volume = self.temperature * batch.scale * widths.log().sum()
        value: Tensor = self.target(position, batch)
        counted: Tensor = value + volume - volume.detach()
        return counted

    def _at(self, z: Position, rows: Expansion) -> tuple[Position, Tensor, Tensor]:
        """What is shared, centers of the rows there, and widths of their units."""
        shared = self.whitened.position(self._shared(z))
        away = tree.flat(shared, self.whitened.shapes) - rows.shared
        center = rows.center + torch.einsum("nkd,...d->...nk", rows.slope, away)
        return shared, center, self.unit * torch.einsum("nkd,...d->...nk", rows.widening, away).exp()

    def _shared(self, leaves: Position) -> Position:
        return {name: leaves[name] for name in self.whitened.shapes}

    def _joined(self, shared: Position, values: Tensor) -> Position:
        position = {**shared, **self.layout.leaves(values)}
        return {name: position[name] for name in self.target.latent}
