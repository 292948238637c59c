"""Fits modes and normal distributions by the steps of a kernel, and makes a posterior of what they lead to."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pyro_scale import tree
from pyro_scale.checks import derived_seeds
from pyro_scale.choice import JitCompile
from pyro_scale.collected import Ending, Plan
from pyro_scale.compile import CompiledModel
from pyro_scale.draws import constrain
from pyro_scale.errors import NonFiniteError
from pyro_scale.gaussians import sample
from pyro_scale.health import of_ending
from pyro_scale.hessian import row_blocks
from pyro_scale.initial import initial_positions
from pyro_scale.loaders import Streamed
from pyro_scale.mode import DENSE_LIMIT, Mode, newton
from pyro_scale.outcome import judge
from pyro_scale.posterior import Posterior
from pyro_scale.progress import Callback, Reporter
from pyro_scale.sample import Run, to_the_end
from pyro_scale.schedules import cosine
from pyro_scale.types import Fitting, Gaussian, Position

logger = logging.getLogger("pyro_scale")

STEPS = 2000
"""Steps of a fit whose number is not given."""


class Request(NamedTuple):
    """What was asked of `infer`, checked.

    Attributes:
        keep: sites whose draws are kept.
        num_samples, warmup_steps, num_chains, initial, seed, progress, callback, jit_compile: as those of `infer`.
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


class Fit(NamedTuple):
    """What the steps leave.

    Attributes:
        position: where they end, `(num_fits, *site)`, in unconstrained coordinates.
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
    ending: Ending | None
    seconds: dict[str, float]
    how: str
    step_size: float | None


def approximated(compiled: CompiledModel, kernel: Any, request: Request, began: float) -> Posterior:
    """The posterior of a kernel that does not sample.

    Args:
        compiled: the model.
        kernel: one with a `fitting`.
        request: what was asked for.
        began: when, by `time.perf_counter`.

    Raises:
        NonFiniteError, Exception: as `infer`.
    """
    fitting: Fitting = kernel.fitting(request.num_chains)
    seeds = derived_seeds(request.seed, 4 + fitting.num_fits * max(1, fitting.num_particles))
    start = initial_positions(compiled, request.initial, seeds[4:])
    seconds = {"prepare": time.perf_counter() - began}
    asked = kernel
    modes = _modes(compiled, kernel, start) if fitting.from_mode and kernel.step_size is None else None
    if modes is not None:
        start = tree.map(lambda *leaves: torch.stack(leaves), *(mode.position for mode in modes))
        if hasattr(kernel, "at_mode"):
            kernel = kernel.at_mode(modes[0].negative_hessian, modes[0].position)
    seconds["tune"] = time.perf_counter() - began - seconds["prepare"]
    num_steps = request.warmup_steps
    if num_steps is None:
        num_steps = 0 if fitting.done_at_mode and modes is not None else STEPS
    fit = _fitted(compiled, kernel, fitting, start, num_steps, seeds, request)
    posterior = _posterior(compiled, asked, fitting, fit, num_steps, seeds[3], request, {**seconds, **fit.seconds})
    if fit.ending is not None:
        _tell(fit.ending, posterior)
    judge(posterior, request.progress)
    return posterior


def _modes(compiled: CompiledModel, kernel: Any, start: Position) -> list[Mode] | None:
    """What Newton's method finds above every start; None where it does not apply, or finds no mode above one."""
    number = len(next(iter(start.values())))
    if tree.size(start) // number > DENSE_LIMIT or isinstance(compiled.data, Streamed):
        return None
    objective = kernel.objective(compiled) if hasattr(kernel, "objective") else compiled
    blocks = row_blocks(compiled)
    found = [newton(objective, blocks, tree.map(lambda leaf, k=k: leaf[k], start)) for k in range(number)]
    return found if all(mode.converged for mode in found) else None


def _fitted(
    compiled: CompiledModel,
    kernel: Any,
    fitting: Fitting,
    start: Position,
    num_steps: int,
    seeds: list[int],
    request: Request,
) -> Fit:
    """What so many steps lead to."""
    began = time.perf_counter()
    if kernel.step_size is None:
        kernel = replace(kernel, step_size=cosine(kernel.default_step_size, 0.0, max(1, num_steps)))
    # the run takes one step more than its plan says
    plan = Plan(0, max(0, num_steps - 1), 1, fitting.num_fits, request.keep, traced=True)
    if num_steps == 0:
        gaussian = None
        return Fit(start, gaussian, torch.empty(fitting.num_fits, 0), None, {}, "not at all", None)
    run = Run(compiled, kernel, plan, start, seeds[1:3], request.jit_compile)
    seconds = {"capture": time.perf_counter() - began}
    began = time.perf_counter()
    ending = to_the_end(run, Reporter(plan.num_steps, request.progress, request.callback))
    run.steps.choice.remember()
    seconds |= {"compile": run.steps.choice.seconds, "sample": time.perf_counter() - began - run.steps.choice.seconds}
    gaussian = None
    if run.bound.approximation is not None:
        gaussian = run.bound.approximation(_first(run.steps.chains))
    step_size = float(run.inputs.settings.step_size[-1])
    position = run.table.position(run.steps.chains.position)
    trace = torch.cat(run.collected.trace).T.contiguous()
    return Fit(position, gaussian, trace, ending, seconds, run.steps.choice.how, step_size)


def _first(chains: Any) -> Any:
    """The state of the first."""
    return pytree.tree_map(lambda leaf: leaf[0], chains)


def _posterior(
    compiled: CompiledModel,
    kernel: Any,
    fitting: Fitting,
    fit: Fit,
    num_steps: int,
    seed: int,
    request: Request,
    seconds: dict[str, float],
) -> Posterior:
    began = time.perf_counter()
    stats = {}
    if fit.gaussian is not None:
        positions = sample(fit.gaussian, request.num_samples, torch.Generator().manual_seed(seed))
        stats["log_density"] = fit.gaussian.log_prob(positions).unsqueeze(0)
        positions = tree.map(lambda leaf: leaf.unsqueeze(1), positions)
    else:
        positions = tree.map(lambda leaf: leaf.unsqueeze(0), fit.position)
        stats["lp"] = torch.stack([_log_posterior(compiled, fit.position, k) for k in range(fitting.num_fits)])[:, None]
    draws = constrain(compiled, [positions], request.keep)
    num_chains, num_samples = next(iter(draws.values())).shape[:2]
    started = list(request.initial) if isinstance(request.initial, Mapping) else request.initial
    settings = {
        "method": type(kernel).__name__,
        "kernel": repr(kernel),
        "seed": request.seed,
        "initial": started,
        "num_chains": num_chains,
        "num_samples": num_samples,
        "warmup_steps": num_steps,
        "batch_size": compiled.batch_size,
        "num_data": compiled.num_data,
        "temperature": None if callable(kernel.temperature) else kernel.temperature,
        "dtype": str(compiled.data.dtype).removeprefix("torch."),
        "steps_run": fit.how,
        "ended_early": fit.ending.reason if fit.ending else None,
    }
    return Posterior(
        draws,
        sample_stats=stats,
        num_steps=fit.trace.shape[1],
        step_size=fit.step_size,
        timing={**seconds, "constrain": time.perf_counter() - began},
        settings=settings,
        compiled=compiled,
        kernel=kernel,
        checks=of_ending(fit.ending.reason if fit.ending else None),
        approximation=fit.gaussian,
        trace=fit.trace,
    )


def _log_posterior(compiled: CompiledModel, positions: Position, number: int) -> Tensor:
    """Of all rows at one of several positions; NaN where the rows are those of a loader."""
    if isinstance(compiled.data, Streamed):
        return torch.tensor(math.nan)
    position = tree.map(lambda leaf: leaf[number], positions)
    with torch.no_grad():
        return torch.stack([compiled(position, block) / block.scale for block in row_blocks(compiled)]).sum()


def _tell(ending: Ending, posterior: Posterior) -> None:
    """Raises, or warns of, what ended the steps early."""
    message = f"The fit ended early: {ending.reason}"
    if ending.error is not None:
        ending.error.posterior = posterior  # type: ignore[attr-defined]
        logger.error("%s. The error's `posterior` holds the fit as it was then.", message)
        raise ending.error
    if ending.failed:
        raise NonFiniteError(f"{message} This error's `posterior` holds the fit as it was before.", posterior)
    logger.warning("%s; the posterior is of the fit as it was then.", message)
