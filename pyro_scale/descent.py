"""Climbs by an optimizer of torch, step by step: what holds its own parameters is neither recorded nor vectorised."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from pyro_scale import tree
from pyro_scale.batches import Permutations
from pyro_scale.collected import Ending
from pyro_scale.compile import CompiledModel
from pyro_scale.errors import ArgumentError
from pyro_scale.fit import Fit, Request
from pyro_scale.loaders import Streamed
from pyro_scale.progress import Reporter
from pyro_scale.types import Batch, Fitting, LogPosterior, Position


class _Climb:
    """One fit: its parameters, the optimizer that holds them, and its minibatches."""

    def __init__(self, compiled: CompiledModel, fitting: Fitting, start: Position, seed: int) -> None:
        self.compiled = compiled
        self.parameters = tree.map(lambda leaf: leaf.detach().clone().requires_grad_(), start)
        assert fitting.optimizer is not None
        self.optimizer = fitting.optimizer(list(self.parameters.values()))
        if not isinstance(self.optimizer, torch.optim.Optimizer):
            raise ArgumentError(
                f"The function that is the optimizer returned {self.optimizer!r}; it must return one of torch's, "
                "as lambda params: torch.optim.SGD(params, lr=0.1)."
            )
        size = compiled.batch_size
        generator = torch.Generator().manual_seed(seed)
        self.batches = None if size is None else Permutations(compiled.num_data, size, 1, generator)

    def batch(self) -> Batch:
        return self.compiled.batch(None if self.batches is None else self.batches.draw(1)[0, 0])

    def step(self, objective: LogPosterior) -> Tensor:
        """The objective where the step starts."""
        batch, values = self.batch(), []

        def loss() -> Tensor:
            self.optimizer.zero_grad()
            value = objective(self.parameters, batch)
            values.append(value.detach())
            minus: Tensor = -value / self.compiled.num_data
            minus.backward()
            return minus

        with torch.enable_grad():
            self.optimizer.step(loss)
        return values[0]

    @property
    def position(self) -> Position:
        return tree.map(lambda leaf: leaf.detach().clone(), self.parameters)


def descended(
    compiled: CompiledModel,
    kernel: Any,
    fitting: Fitting,
    start: Position,
    num_steps: int,
    seeds: list[int],
    request: Request,
) -> Fit:
    """Takes so many steps in each fit, one fit after another, from starts `(num_fits, *site)`."""
    if isinstance(compiled.data, Streamed):
        raise ArgumentError("An optimizer of torch takes its own rows: pass loader.dataset and a batch_size.")
    began, objective = time.perf_counter(), kernel.objective(compiled)
    climbs = [
        _Climb(compiled, fitting, tree.map(lambda leaf, k=k: leaf[k], start), seeds[0] + k)
        for k in range(fitting.num_fits)
    ]
    reporter = Reporter(num_steps, request.progress, request.callback)
    values: list[Tensor] = []
    ending = None
    held = found = [climb.position for climb in climbs]
    try:
        while len(values) < num_steps and ending is None:
            before = [climb.position for climb in climbs]
            reached = torch.stack([climb.step(objective) for climb in climbs])
            done = f"after {len(values)} of {num_steps} steps"
            if not reached.isfinite().all():
                fit = int((~reached.isfinite()).int().argmax())
                ending = Ending(f"{done} the log posterior of fit {fit} is not finite; lower the learning rate.", True)
                found = held
                break
            values.append(reached)
            held, found = before, [climb.position for climb in climbs]
            if reporter.update(len(values), 0) and len(values) < num_steps:
                ending = Ending(f"stopped by the callback after {len(values)} of {num_steps} steps")
    except KeyboardInterrupt:
        ending = Ending(f"interrupted after {len(values)} of {num_steps} steps")
    except Exception as error:  # of the model, the optimizer or the callback
        ending = Ending(f"{type(error).__name__} after {len(values)} of {num_steps} steps", error=error)
    finally:
        reporter.close()
    position = tree.map(lambda *leaves: torch.stack(leaves), *found)
    trace = torch.stack(values, 1) if values else torch.empty(fitting.num_fits, 0)
    return Fit(position, None, trace, ending, {"sample": time.perf_counter() - began}, "eager, by torch's optimizer")
