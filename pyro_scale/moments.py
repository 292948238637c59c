"""Mean and standard deviation over draws that are too large to keep."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_scale.types import Position


class Moments(NamedTuple):
    """Mean and standard deviation over the draws of a chain, `(num_chains, *site)`; the latter NaN for one draw."""

    mean: Tensor
    sd: Tensor


class RunningMoments:
    """Mean and standard deviation of functions of positions that are not kept: Welford (1962).

    Args:
        values: positions of all chains -> name -> `(num_chains, ...)`.
        kept: names whose draws are kept, so that their moments need not be.
        left_out: sites of a position that are not needed for anything else.
    """

    def __init__(
        self, values: Callable[[Position], dict[str, Tensor]], kept: Collection[str], left_out: Collection[str]
    ) -> None:
        self.values = values
        self.kept = kept
        self.left_out = left_out
        self.count = 0
        self.mean: dict[str, Tensor] = {}
        self.squares: dict[str, Tensor] = {}

    def add(self, position: Position) -> list[str]:
        """Takes one more position of every chain into account, unless some values are not finite: their names."""
        values, count = self.values(position), self.count + 1
        if bad := [name for name, value in values.items() if not torch.isfinite(value).all()]:
            return bad
        mean, squares = {}, {}
        for name, value in values.items():
            if name in self.kept:
                continue
            away = value - self.mean.get(name, 0)
            mean[name] = self.mean.get(name, 0) + away / count
            squares[name] = self.squares.get(name, 0) + away * (value - mean[name])
        # in one go: Ctrl-C may come between any two statements
        self.count, self.mean, self.squares = count, mean, squares
        return []

    def result(self) -> dict[str, Moments]:
        """Name -> moments so far."""
        degrees = self.count - 1 if self.count > 1 else math.nan
        return {name: Moments(mean, (self.squares[name] / degrees).sqrt()) for name, mean in self.mean.items()}
