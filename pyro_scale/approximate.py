"""From a kernel that does not sample to a posterior: where it starts, its steps, and the draws of what they lead to."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_scale import tree
from pyro_scale.at_mode import Started, frame_at, prior_mode, started, steps_of
from pyro_scale.checks import derived_seeds
from pyro_scale.collected import Ending
from pyro_scale.compile import CompiledModel
from pyro_scale.descent import descended
from pyro_scale.draws import constrain
from pyro_scale.errors import ArgumentError, MinibatchError, NonFiniteError
from pyro_scale.fit import Fit, Request, passed, stepped
from pyro_scale.fit_checks import checks_of, why_not_checked
from pyro_scale.gaussians import sample
from pyro_scale.health import of_ending
from pyro_scale.hessian import row_blocks
from pyro_scale.initial import initial_positions
from pyro_scale.laplace_fit import LaplaceFit, laplace_at, refuse
from pyro_scale.loaders import Streamed
from pyro_scale.local import UNCHANGED
from pyro_scale.outcome import judge
from pyro_scale.posterior import Posterior
from pyro_scale.types import Fitting, Position

logger = logging.getLogger("pyro_scale")

LAST = 10
"""The objective at the end is the mean of the last steps, one in so many."""


def approximated(compiled: CompiledModel, kernel: Any, request: Request, began: float) -> Posterior:
    """The posterior of a kernel that does not sample.

    Args:
        compiled: the model.
        kernel: one with a `fitting`.
        request: what was asked for.
        began: when, by `time.perf_counter`.

    Raises:
        ArgumentError, MinibatchError, NonFiniteError, Exception: as `infer`.
    """
    fitting: Fitting = kernel.fitting(request.num_chains)
    _check(compiled, kernel, fitting)
    number = fitting.num_fits * max(1, fitting.num_particles)
    seeds = derived_seeds(request.seed, 6 + number)
    start = initial_positions(compiled, request.initial, seeds[6:])
    seconds = {"prepare": time.perf_counter() - began}
    one = tree.map(lambda leaf: leaf[0], start)
    if hasattr(kernel, "approximate"):
        refuse(compiled, kernel, one)
    if fitting.one_pass:
        fit = passed(compiled, kernel, prior_mode(compiled, one), seeds[0], request)
        return _posterior(compiled, kernel, fitting, fit, seeds[1], request, {**seconds, **fit.seconds})
    # Laplace's approximations climb by a kernel of their own, and look at all rows at the end
    asked, kernel = kernel, kernel.optimizer if hasattr(kernel, "approximate") else kernel
    num_steps = steps_of(compiled) if request.warmup_steps is None else request.warmup_steps
    firsts = start if fitting.num_particles == 0 else tree.map(lambda leaf: leaf[:1], start)
    at = started(compiled, kernel, fitting, firsts, num_steps, seeds[2:4], request)
    seconds["tune"] = time.perf_counter() - began - seconds["prepare"]
    if at.ending is not None:
        alone = at.position  # of particles there is one as yet
        if fitting.num_particles > 0:
            alone = tree.map(lambda leaf: leaf.unsqueeze(1), alone)
        fit = Fit(alone, None, torch.empty(fitting.num_fits, 0), _on_the_way(at.ending, asked))
    else:
        ready, start, frame = _ready(compiled, kernel, fitting, at, start, seeds[4])
        if fitting.done_at_mode and at.exact and request.warmup_steps is None:
            num_steps = 0
        if fitting.optimizer is not None:
            fit = descended(compiled, kernel, fitting, start, num_steps, seeds[2:4], request)
        else:
            fit = stepped(compiled, ready, fitting, start, num_steps, seeds[2:4], request, frame)
    seconds |= fit.seconds
    around = None
    if asked is not kernel:
        began = time.perf_counter()
        try:
            around = laplace_at(compiled, asked, tree.map(lambda leaf: leaf[0], fit.position), seeds[5])
        except Exception as error:  # the climb is not lost
            error.posterior = _posterior(compiled, kernel, fitting, fit, seeds[1], request, seconds)  # type: ignore[attr-defined]
            logger.error("The error's `posterior` holds the mode.")
            raise
        fit, seconds["curvature"] = fit._replace(gaussian=around.gaussian), time.perf_counter() - began
    return _posterior(compiled, asked, fitting, fit, seeds[1], request, seconds, around)


def _check(compiled: CompiledModel, kernel: Any, fitting: Fitting) -> None:
    name, local = type(kernel).__name__, list(compiled.local)
    if fitting.optimizer is not None and isinstance(compiled.data, Streamed):
        raise ArgumentError("An optimizer of torch takes its own rows: pass loader.dataset and a batch_size.")
    if fitting.minibatches and compiled.batch_size in (None, compiled.num_data):
        raise ArgumentError(f"{name} is as wide as minibatches make it, and there are none: set batch_size.")
    if local and (fitting.one_pass or fitting.num_particles > 0 or (compiled.batch_size and not fitting.local)):
        raise MinibatchError(
            f"{name} cannot hold site '{local[0]}', which has a value for each row. Use vi_diag or sghmc, which can."
        )
    if fitting.one_pass and isinstance(compiled.data, Streamed):
        raise ArgumentError(f"{name} goes through all rows once; pass loader.dataset in place of the loader.")


def _on_the_way(ending: Ending, kernel: Any) -> Ending:
    """What ended the climb to the mode, and what there is therefore not."""
    reason = (
        f"{ending.reason.removesuffix('.')}, on the climb to a mode, before any step of {type(kernel).__name__}: there "
        "is no approximation, and the draws are the place that the climb had reached."
    )
    return ending._replace(reason=reason)


def _ready(
    compiled: CompiledModel, kernel: Any, fitting: Fitting, at: Started, start: Position, seed: int
) -> tuple[Any, Position, Any]:
    """The kernel, start and coordinates of the steps, once the mode is known."""
    frame = UNCHANGED if kernel.step_size is not None else frame_at(compiled, fitting, at)
    if at.curvature is not None and hasattr(kernel, "at_mode"):
        kernel = kernel.at_mode(at.curvature, tree.map(lambda leaf: leaf[0], at.position))
    if at.curvature is not None and hasattr(kernel, "at_batches"):
        assert compiled.batch_size is not None
        kernel = kernel.at_batches(compiled.num_data / compiled.batch_size)
    if fitting.num_particles == 0:
        return kernel, at.position, frame
    if frame.whitened is None:
        return kernel, tree.map(lambda leaf: leaf.unsqueeze(0), start), frame
    generator = torch.Generator().manual_seed(seed)

    def normals(leaf: Tensor) -> Tensor:
        return torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype, device="cpu").to(leaf.device)

    return kernel, frame.whitened.position(tree.map(lambda leaf: normals(leaf.unsqueeze(0)), start)), frame


def _posterior(
    compiled: CompiledModel,
    kernel: Any,
    fitting: Fitting,
    fit: Fit,
    seed: int,
    request: Request,
    seconds: dict[str, float],
    around: LaplaceFit | None = None,
) -> Posterior:
    """The posterior of a fit, with a warning where it ended early or a check failed."""
    began = time.perf_counter()
    positions, stats = _positions(compiled, fitting, fit, request.num_samples, seed)
    draws = constrain(compiled, [positions], request.keep)
    constrained = time.perf_counter()
    settings = _settings(compiled, kernel, fit, request, next(iter(draws.values())).shape)
    if around is None:
        checks = checks_of(compiled, kernel, fit, draws)
    else:
        checks = [*of_ending(settings["ended_early"]), *around.checks]
        settings["log_marginal_likelihood"] = around.log_marginal_likelihood
        settings["gradient_norm"] = around.gradient_norm
    posterior = Posterior(
        draws,
        sample_stats=stats,
        num_steps=fit.trace.shape[1],
        step_size=fit.step_size,
        timing={**seconds, "constrain": constrained - began, "health": time.perf_counter() - constrained},
        settings=settings,
        compiled=compiled,
        kernel=kernel,
        checks=checks,
        approximation=fit.gaussian,
        trace=fit.trace,
    )
    if fit.ending is not None:
        _tell(fit.ending, posterior)
    if request.told:
        judge(posterior, request.progress)
    return posterior


def _positions(
    compiled: CompiledModel, fitting: Fitting, fit: Fit, num_samples: int, seed: int
) -> tuple[Position, dict[str, Tensor]]:
    """Draws of the result, `(draws, chains, *site)`, and what is known of each, `(chains, draws)`."""
    if fit.gaussian is not None:
        drawn = sample(fit.gaussian, num_samples, torch.Generator().manual_seed(seed))
        log_density = fit.gaussian.log_prob(drawn).unsqueeze(0)
        return tree.map(lambda leaf: leaf.unsqueeze(1), drawn), {"log_density": log_density}
    single = fitting.num_particles == 0
    points = fit.position if single else tree.map(lambda leaf: leaf.squeeze(0), fit.position)
    values = _log_posterior(compiled, points)
    if single:
        return tree.map(lambda leaf: leaf.unsqueeze(0), points), {"lp": values.unsqueeze(1)}
    return tree.map(lambda leaf: leaf.unsqueeze(1), points), {"lp": values.unsqueeze(0)}


def _log_posterior(compiled: CompiledModel, points: Position) -> Tensor:
    """Of all rows at positions `(n, *site)`; NaN where they are those of a loader."""
    number = len(next(iter(points.values())))
    if isinstance(compiled.data, Streamed):
        return torch.full((number,), torch.nan)
    blocks, values = row_blocks(compiled), []
    with torch.no_grad():
        for k in range(number):
            point = tree.map(lambda leaf, k=k: leaf[k], points)
            values.append(torch.stack([compiled(point, block) / block.scale for block in blocks]).sum())
    return torch.stack(values)


def _settings(compiled: CompiledModel, kernel: Any, fit: Fit, request: Request, shape: torch.Size) -> dict[str, Any]:
    last = fit.trace[0, -max(1, fit.trace.shape[1] // LAST) :].double()
    return {
        "method": type(kernel).__name__,
        "kernel": repr(kernel),
        "seed": request.seed,
        "initial": list(request.initial) if isinstance(request.initial, Mapping) else request.initial,
        "num_chains": shape[0],
        "num_samples": shape[1],
        "warmup_steps": fit.trace.shape[1],
        "batch_size": compiled.batch_size,
        "num_data": compiled.num_data,
        "temperature": None if callable(kernel.temperature) else kernel.temperature,
        "dtype": str(compiled.data.dtype).removeprefix("torch."),
        "steps_run": fit.how,
        "objective": float(last.mean()) if len(last) else None,
        "objective_error": float(last.std() / len(last) ** 0.5) if len(last) > 1 else None,
        "left_out": why_not_checked(compiled),
        "ended_early": fit.ending.reason if fit.ending else None,
    }


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
