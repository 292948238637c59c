"""Where a fit starts: at the mode above its start and with the curvature there, or at the mode of the prior."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_scale import tree
from pyro_scale.collected import Ending
from pyro_scale.compile import CompiledModel
from pyro_scale.errors import ModelError
from pyro_scale.fisher import Fisher
from pyro_scale.fit import Request, stepped
from pyro_scale.gradient import Frame, anchor_at
from pyro_scale.hessian import row_blocks
from pyro_scale.kernels import MAP
from pyro_scale.loaders import Streamed
from pyro_scale.local import UNCHANGED
from pyro_scale.mode import DENSE_LIMIT, Mode, newton
from pyro_scale.types import Batch, Fitting, Position
from pyro_scale.whitening import Whitened

STEPS, MOST_STEPS, EPOCHS = 2000, 20_000, 20
"""Steps of a fit whose number is not given: so many passes through the rows, between these."""
LEAST_CURVATURE = 1e-10
"""Relative to the largest; below it a direction is flat."""


class Started(NamedTuple):
    """Where a fit starts.

    Attributes:
        position: `(num_fits, *site)`.
        curvature: minus the Hessian of the log posterior at the mode, `(d, d)`, or a diagonal `(d,)` of Fisher's
            information beyond `DENSE_LIMIT` coordinates; None where neither is known.
        exact: whether Newton's method found the mode of every fit.
        ending: why the climb ended early, if it did.
    """

    position: Position
    curvature: Tensor | None = None
    exact: bool = False
    ending: Ending | None = None


def steps_of(compiled: CompiledModel) -> int:
    """How many steps a fit takes, if not told."""
    size = compiled.batch_size or compiled.num_data
    return min(MOST_STEPS, max(STEPS, EPOCHS * compiled.num_data // size))


def started(
    compiled: CompiledModel,
    kernel: Any,
    fitting: Fitting,
    start: Position,
    num_steps: int,
    seeds: list[int],
    request: Request,
) -> Started:
    """At the modes above the starts, `(num_fits, *site)`: by Newton's method where that finds them all, or by `MAP`."""
    if not fitting.from_mode or kernel.step_size is not None:
        return Started(start)
    if (modes := _newton(compiled, kernel, start)) is not None:
        position = tree.map(lambda *leaves: torch.stack(leaves), *(mode.position for mode in modes))
        return Started(position, modes[0].negative_hessian, exact=True)
    if fitting.done_at_mode:  # its own steps are the climb
        return Started(start)
    climb = stepped(compiled, MAP(), Fitting(), start, num_steps, seeds, request)
    one = tree.map(lambda leaf: leaf[0], climb.position)
    curvature = None
    if climb.ending is None and not _rows_unknown(compiled):
        rows, rest = Fisher(compiled, torch.Generator().manual_seed(seeds[0])).diagonal(one)
        curvature = rows + rest
        curvature = curvature.clamp(min=LEAST_CURVATURE * float(curvature.max()))
    return Started(climb.position, curvature, ending=climb.ending)


def frame_at(compiled: CompiledModel, fitting: Fitting, at: Started) -> Frame:
    """The coordinates that a fit moves in, and its control variates."""
    if at.curvature is None or kernel_stays(fitting):
        return UNCHANGED
    one = tree.map(lambda leaf: leaf[0], at.position)
    if fitting.scaled or fitting.whitened:
        dense = at.curvature.ndim == 2 and fitting.whitened
        curvature = at.curvature if dense or at.curvature.ndim == 1 else at.curvature.diagonal()
        mode = Mode(one, 0.0, at.exact, 0, curvature)
        return Frame(Whitened(compiled, mode, 1 if fitting.whitened else compiled.num_data))
    if not at.exact or compiled.batch_size is None or compiled.local:
        return UNCHANGED
    anchor = anchor_at(compiled, row_blocks(compiled), one)
    return Frame(None, torch.utils._pytree.tree_map(lambda leaf: leaf.unsqueeze(0), anchor))


def kernel_stays(fitting: Fitting) -> bool:
    """Whether it is to move in the model's coordinates, on minibatches as they are."""
    return fitting.done_at_mode or fitting.one_pass


def prior_mode(compiled: CompiledModel, start: Position) -> Position:
    """Where the prior is highest, from one start.

    Raises:
        ModelError: nowhere.
    """

    def log_prior(position: Position, batch: Batch) -> Tensor:
        value: Tensor = compiled.log_prior(position)
        return value

    everything = Batch({}, torch.zeros(1, dtype=torch.long), 1.0)
    found = newton(log_prior, [everything], start)
    if not found.converged:
        raise ModelError(
            "The prior has no mode in unconstrained space, or is flat there, so that no normal stands for it. Give "
            "every site a proper prior, or use another method, as vi_diag."
        )
    return found.position


def _newton(compiled: CompiledModel, kernel: Any, start: Position) -> list[Mode] | None:
    number = len(next(iter(start.values())))
    if tree.size(start) // number > DENSE_LIMIT or _rows_unknown(compiled):
        return None
    objective = kernel.objective(compiled) if hasattr(kernel, "objective") else compiled
    blocks = row_blocks(compiled)
    found = []
    for k in range(number):
        found.append(newton(objective, blocks, tree.map(lambda leaf, k=k: leaf[k], start)))
        if not found[-1].converged:
            return None
    return found


def _rows_unknown(compiled: CompiledModel) -> bool:
    """Whether the log posterior of all rows cannot be had."""
    return isinstance(compiled.data, Streamed) or bool(compiled.local and compiled.batch_size is not None)
