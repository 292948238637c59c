"""Climbs by Adam on minibatches, in units of the curvature, within a number of steps that is known before."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_scale import tree
from pyro_scale.batches import Permutations
from pyro_scale.capture import record_or_keep
from pyro_scale.compile import CompiledModel
from pyro_scale.derivative import grad_and_value
from pyro_scale.mode import with_all_rows
from pyro_scale.starts import LinAlgError
from pyro_scale.types import Batch, Position

FIRST_RATE = 0.05
WINDOW = 50
HALVINGS = 8
DECAYS = (0.9, 0.999)


class Climb(NamedTuple):
    """The end of a climb.

    Attributes:
        position: unconstrained.
        log_posterior: mean over the last minibatches on the way there, in nats.
        converged: whether the log posterior had stopped rising at all rates.
        num_steps: gradients taken.
    """

    position: Position
    log_posterior: float
    converged: bool
    num_steps: int


class Ascent:
    """Adam for one model, whose gradient is recorded once.

    The rate is doubled from window to window while the log posterior rises, so that no start is too far away, and
    halved where it has stopped; a window that ends below where it began is taken back. In the second half of the
    steps the rate also falls to 0.

    Args:
        compiled: the model.
        like: an example of a position.
        seed: of the minibatches.
        seek: is called after every window of steps.

    References:
        Kingma & Ba (2015), Adam: a method for stochastic optimization, ICLR.
    """

    def __init__(self, compiled: CompiledModel, like: Position, seed: int, seek: Callable[[], None]) -> None:
        self.compiled = compiled
        self.seek = seek
        size = compiled.batch_size
        generator = torch.Generator().manual_seed(seed)
        self.batches = None if size is None else Permutations(compiled.num_data, size, 1, generator)
        self.gradient, _ = record_or_keep(grad_and_value(with_all_rows(compiled)), like, self._batch())

    def _batch(self) -> Batch:
        return self.compiled.batch(None if self.batches is None else self.batches.draw(1)[0, 0])

    @torch.no_grad()
    def climb(self, start: Position, units: Position, most_steps: int) -> Climb:
        """Climbs from a start.

        Args:
            start: unconstrained.
            units: of the coordinates; a step is of the order of the rate times these.
            most_steps: gradients at most.
        """
        moving = _Moving(start, units, self.compiled.num_data)
        held, held_value = tree.map(torch.clone, start), -torch.inf
        rate, rising, halvings, steps = FIRST_RATE, True, 0, 0
        before: Tensor | None = None
        while steps < most_steps and halvings <= HALVINGS:
            window = min(WINDOW, most_steps - steps)
            values = self._window(moving, rate, steps, window, most_steps)
            steps += window
            self.seek()
            finite = bool(values.isfinite().all()) and moving.is_finite()
            if not finite or (rising and before is not None and _rise(before, values) < -3):
                moving = _Moving(held, units, self.compiled.num_data)
                rate, rising = rate / 4, False
                continue
            held, held_value = tree.map(torch.clone, moving.position), float(values.mean())
            if before is not None and _rise(before, values) <= 1:
                rate, rising, halvings, before = rate / 2, False, halvings + 1, None
                continue
            rate, before = (2 * rate if rising and before is not None else rate), values
        return Climb(held, held_value, halvings > HALVINGS, steps)

    def _window(self, moving: _Moving, rate: float, first: int, length: int, most_steps: int) -> Tensor:
        """Log posteriors of so many steps."""
        values = []
        for step in range(first, first + length):
            try:
                gradient, value = self.gradient(moving.position, self._batch())
            except LinAlgError:
                return torch.full((length,), torch.nan)
            moving.step(gradient, rate * min(1.0, 2 * (1 - step / most_steps)))
            values.append(value.double())
        return torch.stack(values)


class _Moving:
    """Position and moments of Adam, written in place."""

    def __init__(self, start: Position, units: Position, num_data: int) -> None:
        self.position = tree.map(torch.clone, start)
        self.units, self.num_data = units, num_data
        self.mean = tree.map(torch.zeros_like, start)
        self.square = tree.map(torch.zeros_like, start)
        self.count = 0

    def step(self, gradient: Position, rate: float) -> None:
        self.count += 1
        first, second = DECAYS
        left = 1 - first**self.count, 1 - second**self.count
        for name, leaf in gradient.items():
            slope = leaf * self.units[name] / self.num_data
            mean, square = self.mean[name].lerp_(slope, 1 - first), self.square[name].mul_(second)
            square.addcmul_(slope, slope, value=1 - second)
            root = (square / left[1]).sqrt_().add_(1e-8)
            self.position[name].add_((mean / root).mul_(self.units[name]), alpha=rate / left[0])

    def is_finite(self) -> bool:
        return all(bool(leaf.isfinite().all()) for leaf in self.position.values())


def _rise(before: Tensor, now: Tensor) -> float:
    """From window to window, in standard errors."""
    error = ((before.var() + now.var()) / len(now)).sqrt() if len(now) > 1 else torch.zeros(())
    return float((now.mean() - before.mean()) / error.clamp(min=torch.finfo(torch.float64).tiny))
