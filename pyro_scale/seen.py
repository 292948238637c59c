"""What is kept of the positions of a window with many coordinates: moments, a few coordinates, some positions."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_scale import tree
from pyro_scale.row_coordinates import RowCoordinates
from pyro_scale.types import Position
from pyro_scale.whitening import Whitened

TRACED = 300
"""Coordinates whose autocorrelation is looked at."""
SNAPSHOT_NUMBERS = 2**24
"""Numbers of the positions that are kept whole, beside the last."""


class Seen:
    """What is kept of positions as they come: sums, a few coordinates, and some positions whole.

    Args:
        whitened: the coordinates.
        centers: of the chains, one after another, `(centers, d)`.
        number: of positions that each chain will keep.
        generator: of the coordinates that are traced.
        traced: which these are; None for some at random.
        room: so many numbers of each chain are kept whole; None for `SNAPSHOT_NUMBERS`.
    """

    def __init__(
        self,
        whitened: Whitened | RowCoordinates,
        centers: Tensor,
        number: int,
        generator: torch.Generator,
        traced: Tensor | None = None,
        room: int | None = None,
    ) -> None:
        self.whitened, self.centers = whitened, centers
        size = centers.shape[1]
        if traced is None:
            traced = torch.randperm(size, generator=generator, device="cpu")[:TRACED].to(centers.device)
        self.traced = traced
        self.first, self.last, self.count = number // 3, number - 1, 0
        self.sums = torch.zeros_like(centers)
        self.squares = torch.zeros_like(centers[0])
        self.number = torch.zeros(len(centers), dtype=torch.long)
        self.every = max(1, number * size // (SNAPSHOT_NUMBERS if room is None else room))
        self.snapshots: list[Tensor] = []

    def __call__(self, positions: Position) -> Position:
        """Of positions `(n, chains, *site)`, the traces, `(n, chains, traced)`."""
        length = len(next(iter(positions.values())))
        traces = []
        for place in range(length):
            vectors = self.whitened.flat(self.whitened.coordinates(tree.map(lambda leaf, k=place: leaf[k], positions)))
            if self.first <= self.count:
                self._add(vectors)
            if self.first <= self.count and (self.last - self.count) % self.every == 0:
                self.snapshots.append(vectors)
            traces.append(vectors[:, self.traced])
            self.count += 1
        return {"": torch.stack(traces)}

    def _add(self, vectors: Tensor) -> None:
        for chain, vector in enumerate(vectors):
            group = chain % len(self.centers)
            change = vector - self.centers[group]
            self.sums[group] += change
            self.squares += change**2
            self.number[group] += 1

    def moments(self) -> tuple[Tensor, Tensor]:
        """Means of the chains of each center, `(centers, d)`, and variances around them, `(d,)`."""
        number = self.number.to(self.sums).clamp(min=1).unsqueeze(1)
        means = self.sums / number
        variances = (self.squares - (number * means**2).sum(0)) / float(number.sum())
        return self.centers + means, variances.clamp(min=0)
