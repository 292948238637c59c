"""The steps of a fit: those of its kernel to their end, or one pass through all rows."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pyro_scale import tree
from pyro_scale.choice import JitCompile
from pyro_scale.collected import Ending, Plan
from pyro_scale.compile import CompiledModel
from pyro_scale.gradient import Frame
from pyro_scale.local import UNCHANGED, LocalTarget, Table
from pyro_scale.progress import Callback, Reporter
from pyro_scale.sample import Run, to_the_end
from pyro_scale.schedules import cosine
from pyro_scale.starts import LinAlgError
from pyro_scale.types import Batch, BoundKernel, Fitting, Gaussian, Position, Settings

PASS_ROWS = 256
"""Of a block, where all rows are asked for at once."""


class Request(NamedTuple):
    """What was asked of `infer`, checked.

    Attributes:
        keep: sites whose draws are kept.
        num_samples, warmup_steps, num_chains, initial, seed, progress, callback, jit_compile: as those of `infer`.
        told: whether a warning tells of failed checks.
    """

    keep: tuple[str, ...]
    num_samples: int
    warmup_steps: int | None
    num_chains: int
    initial: Literal["prior", "mode"] | Mapping[str, Any] | None
    seed: int
    progress: bool
    callback: Callback | None
    jit_compile: JitCompile
    told: bool = True


class Fit(NamedTuple):
    """What the steps leave.

    Attributes:
        position: where they end, in unconstrained coordinates, `(num_fits, *site)`, or `(num_fits, particles, *site)`.
        gaussian: what was fitted; None for a method whose result is the position.
        trace: objective of every step, `(num_fits, num_steps)`, in nats.
        ending: why they ended early, if they did.
        seconds: of capture, compilation and steps.
        how: steps ran, as "captured".
        step_size: of the last step; None without steps.
    """

    position: Position
    gaussian: Gaussian | None
    trace: Tensor
    ending: Ending | None = None
    seconds: Mapping[str, float] = {}
    how: str = "without steps"
    step_size: float | None = None


def stepped(
    compiled: CompiledModel,
    kernel: Any,
    fitting: Fitting,
    start: Position,
    num_steps: int,
    seeds: list[int],
    request: Request,
    frame: Frame = UNCHANGED,
) -> Fit:
    """Takes so many steps from a start, `(num_fits, *site)`; a step size that is not given falls to 0."""
    began = time.perf_counter()
    if kernel.step_size is None:
        falling = cosine(kernel.default_step_size, 0.0, max(1, num_steps))
        kernel = replace(kernel, step_size=falling)
    if num_steps == 0:
        return _without_steps(compiled, kernel, fitting, start, frame)
    kernel = _in_coordinates(kernel, Table(compiled, frame), start)
    plan = Plan(0, num_steps, 1, fitting.num_fits, request.keep, traced=True)
    run = Run(compiled, kernel, plan, start, seeds, request.jit_compile, frame)
    seconds = {"capture": time.perf_counter() - began}
    began = time.perf_counter()
    ending = to_the_end(run, Reporter(num_steps, request.progress, request.callback))
    run.steps.choice.remember()
    seconds |= {"compile": run.steps.choice.seconds, "sample": time.perf_counter() - began - run.steps.choice.seconds}
    trace = torch.cat([torch.empty(0, fitting.num_fits), *run.collected.trace]).T.contiguous()
    if run.bound.approximation is not None and isinstance(run.table.changed, LocalTarget):
        temperature = run.inputs.settings.temperature[: trace.shape[1]].to(trace)
        trace = trace + temperature * run.table.changed.log_volume  # the entropy is one of unconstrained positions
    return Fit(
        position=run.table.position(run.steps.chains.position),
        gaussian=gaussian_of(run.bound, run.steps.chains, run.table),
        trace=trace,
        ending=ending,
        seconds=seconds,
        how=run.steps.choice.how,
        step_size=float(run.inputs.settings.step_size[max(0, trace.shape[1] - 1)]),
    )


def _without_steps(compiled: CompiledModel, kernel: Any, fitting: Fitting, start: Position, frame: Frame) -> Fit:
    table = Table(compiled, frame)
    kernel = _in_coordinates(kernel, table, start)
    bound, coordinates = kernel.bind(table.target, compiled.num_data), table.coordinates(start)
    one = tree.map(lambda leaf: leaf[0], coordinates)
    shapes = bound.noise_shape(one)
    noise = {name: torch.zeros(shape).to(next(iter(one.values()))) for name, shape in shapes.items()}
    states = pytree.tree_map(lambda leaf: leaf.unsqueeze(0), bound.init(one, noise))
    return Fit(start, gaussian_of(bound, states, table), torch.empty(fitting.num_fits, 0))


def _in_coordinates(kernel: Any, table: Table, start: Position) -> Any:
    """The kernel with its sds at the start, if it has any, in units of its coordinates; they are given in the model's.

    Only those of rows' values differ.
    """
    sds = getattr(kernel, "initial_sd", None)
    if sds is None or not isinstance(table.changed, LocalTarget):
        return kernel
    units = {name: leaf.new_tensor(table.changed.unit if name in table.changed.local else 1.0)
             for name, leaf in start.items()}  # fmt: skip
    if isinstance(sds, Tensor):
        rows = tree.full_like(tree.map(lambda leaf: leaf[0], start), units)
        return replace(kernel, initial_sd=sds / tree.ravel(rows).unsqueeze(1))
    each = sds if isinstance(sds, Mapping) else dict.fromkeys(units, sds)
    return replace(kernel, initial_sd={name: each[name] / unit for name, unit in units.items()})


def gaussian_of(bound: BoundKernel, states: Any, table: Table) -> Gaussian | None:
    """Of the first state, in unconstrained coordinates, which differ from those of the kernel by a factor each."""
    if bound.approximation is None:
        return None
    found: Any = bound.approximation(pytree.tree_map(lambda leaf: leaf[0], states))
    if table.changed is not None:
        ones, zeros = tree.map(torch.ones_like, found.mean), tree.map(torch.zeros_like, found.mean)
        factors = tree.map(torch.sub, table.position(ones), table.position(zeros))
        found = found.rescaled(table.position(found.mean), factors)
    gaussian: Gaussian = found
    return gaussian


def passed(compiled: CompiledModel, kernel: Any, start: Position, seed: int, request: Request) -> Fit:
    """Takes in every row once, in an order of the seed, in blocks of the batch size, of which the last may be shorter.

    With fewer `warmup_steps` than there are blocks the pass ends after as many; with more, others follow, in which rows
    count again. `fit_checks` tells of both.
    """
    began = time.perf_counter()
    bound = kernel.bind(compiled, compiled.num_data)
    blocks = _blocks(compiled, torch.Generator().manual_seed(seed), request.warmup_steps)
    settings = Settings(1.0, kernel.temperature)
    reporter = Reporter(len(blocks), request.progress, request.callback)
    values: list[Tensor] = []
    ending = None
    with torch.no_grad():
        state = bound.init(start, ())
    try:
        for number, block in enumerate(blocks, start=1):
            with torch.no_grad():
                after, info = _taken_in(bound, state, block, settings)
            if not all(bool(leaf.isfinite().all()) for leaf in (*after.position.values(), info.log_posterior)):
                reason = compiled.blame(state.position, block)
                ending = Ending(f"after {number - 1} of {len(blocks)} steps the fit is not finite: {reason}.", True)
                break
            state, values = after, [*values, info.log_posterior]
            if reporter.update(number, 0) and number < len(blocks):
                ending = Ending(f"stopped by the callback after {number} of {len(blocks)} steps")
                break
    except KeyboardInterrupt:
        ending = Ending(f"interrupted after {len(values)} of {len(blocks)} steps")
    except Exception as error:  # of the model or the callback: what was taken in is not its fault
        ending = Ending(f"{type(error).__name__} after {len(values)} of {len(blocks)} steps", error=error)
    finally:
        reporter.close()
    trace = torch.stack(values).unsqueeze(0) if values else torch.empty(1, 0)
    position = tree.map(lambda leaf: leaf.unsqueeze(0), state.position)
    seconds = {"sample": time.perf_counter() - began}
    return Fit(position, bound.approximation(state), trace, ending, seconds, "eager, in one pass")


def pass_rows(compiled: CompiledModel) -> int:
    """Of a block of a pass, but for a shorter last one."""
    if compiled.batch_size is not None:
        return compiled.batch_size
    return compiled.num_data if compiled.structure.minibatch_error else min(PASS_ROWS, compiled.num_data)


def _blocks(compiled: CompiledModel, generator: torch.Generator, number: int | None) -> list[Batch]:
    size = pass_rows(compiled)
    rows: list[Tensor] = []
    while number is None or len(rows) < number:
        order = torch.randperm(compiled.num_data, generator=generator, device="cpu")
        rows += order.split(size)
        if number is None:
            break
    return [compiled.batch(block) for block in rows[:number]]


def _taken_in(bound: Any, state: Any, block: Batch, settings: Settings) -> Any:
    """The next state; one that is not finite where a matrix is not positive definite."""
    with suppress(LinAlgError):
        return bound.update(state, block, (), settings)
    return state._replace(position=tree.map(lambda leaf: leaf * torch.nan, state.position)), None
