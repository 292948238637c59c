"""Climbs in many coordinates, without matrices: by Newton's method where it applies, elsewhere by Adam."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pyro_scale import tree
from pyro_scale.ascent import Ascent
from pyro_scale.capture import first_line
from pyro_scale.fisher import Fisher
from pyro_scale.gradient import anchor_at
from pyro_scale.hessian import Spectrum
from pyro_scale.mean_field import best_normal, is_endless
from pyro_scale.mode import Mode, with_all_rows
from pyro_scale.newton_cg import ascend
from pyro_scale.products import Products, diagonal
from pyro_scale.types import Batch, Position

logger = logging.getLogger("pyro_scale")

LOOKED_AT = 4096
"""Rows that tell the log posterior of a place."""
CHECKED = (1 / 8, 1 / 4, 1 / 2, 1.0)
"""Shares of a climb after which it is asked whether it leads to a mode."""
NEWTON_NUMBERS, NEWTON_ROWS = 2**28, 2**15
"""Rows of Newton's method: so many times coordinates at most, and of many more rows than the latter a sample."""
CLEAR = 4.0
"""Standard errors by which an entry of the Hessian must be told from 0."""


class Climber:
    """Climbs from several starts.

    Args:
        fisher: the model's rows, and the curvature that they show.
        starts: of all chains, an example of positions.
        most_steps: gradients that a climb by Adam takes at most.
        generator: of what is random.
        seek: is called on the way.
    """

    def __init__(
        self,
        fisher: Fisher,
        starts: Position,
        most_steps: int,
        generator: torch.Generator,
        seek: Callable[[], None],
    ) -> None:
        self.compiled = fisher.compiled
        self.fisher = fisher
        self.size = sum(shape.numel() for shape in fisher.compiled.latent.values())
        self.most_steps = most_steps
        self.generator = generator
        self.seek = seek
        self.ascent = Ascent(fisher.compiled, tree.map(lambda leaf: leaf[0], starts), self._seed(), seek)

    def climbed(self, start: Position) -> list[Mode]:
        """By Newton's method where it applies; otherwise by Adam, its units measured anew on the way.

        The end of the climb; behind the places that it came through, if it has none.
        """
        if (found := self._newton(start)) is not None:
            position, curvature = found
            value = self._value(position, self.fisher.some_rows(LOOKED_AT)[:1])
            return [Mode(position, value, True, 0, curvature)]
        some, at, taken = self.fisher.some_rows(LOOKED_AT), start, 0
        rows, rest = self.fisher.diagonal(at)
        places: list[Mode] = []
        for share in CHECKED:
            units, _ = Spectrum.of(rows / self.compiled.num_data + rest).factors()
            most = max(1, int(share * self.most_steps) - taken)
            climb = self.ascent.climb(at, tree.unravel(units, tree.shapes(at)), most)
            at, taken = climb.position, taken + climb.num_steps
            rows, rest = self.fisher.diagonal(at)
            place = Mode(at, self._value(at, some), climb.converged, taken, rows + rest)
            places.append(place)
            if len(places) > 1 and is_endless(*places[-2:]):
                return places
        return places[-1:]

    def without_mode(self, places: Sequence[Mode]) -> Mode | None:
        """What stands for a mode where a climb that came through these places has no end."""
        logger.info(
            "The log posterior has no mode: it rises without end, as where a group sd goes to 0. Coordinates are those "
            "of a normal that is fitted by variational inference."
        )
        return best_normal(self.compiled, places, self.most_steps // 2, (self._seed(), self._seed()), self.seek)

    @torch.no_grad()
    def _value(self, position: Position, batches: Sequence[Batch]) -> float:
        """The log posterior, as these rows show it."""
        values = [len(batch.indices) * float(self.compiled(position, batch)) for batch in batches]
        return sum(values) / sum(len(batch.indices) for batch in batches)

    def _newton(self, start: Position) -> tuple[Position, Tensor] | None:
        """The mode above a start where rows enough to tell it can be looked at, and the curvature is positive.

        Its curvature is the Hessian's where probes tell that well: the gradients of a few rows, all that a coordinate
        may have, say less. Where coordinates are strongly correlated they say more.
        """
        compiled, num_data = self.compiled, self.compiled.num_data
        most = min(num_data, NEWTON_NUMBERS // self.size, max(NEWTON_ROWS, 8 * self.size))
        if self.fisher.splits and most < min(num_data, 4 * self.size):
            return None
        batches = self.fisher.some_rows(most)
        share = num_data / sum(len(batch.indices) for batch in batches)
        target = with_all_rows(compiled)
        terms = [lambda at, batch=batch: share * target(at, batch) / batch.scale for batch in batches]
        rows, rest = self.fisher.diagonal(start)
        units, _ = Spectrum.of(rows + rest).factors()

        def whole(position: Position) -> Tensor:
            return tree.ravel(anchor_at(compiled, self.fisher.blocks, position).gradient)

        try:
            found = ascend(terms, start, units, whole if share > 1 else None)
            if found is None:
                return None
            rows, rest = self.fisher.diagonal(found)
            units, _ = Spectrum.of(rows + rest).factors()
            hessian, error = diagonal(Products(terms, found), units, self.generator)
            return found, torch.where(hessian > CLEAR * error, hessian, rows + rest)
        except RuntimeError as error:  # LinAlgError, or an operation whose gradient cannot be differentiated
            logger.info("Newton's method gives up: %s.", first_line(error))
            return None

    def _seed(self) -> int:
        return int(torch.randint(2**31, (), generator=self.generator, device="cpu"))
