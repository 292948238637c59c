"""What a run of chains comes to: a posterior with the checks that only the run can make, or an error that holds it."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pyro_scale import tree
from pyro_scale.assessment import A_COORDINATE, why_not_examined
from pyro_scale.capture import first_line
from pyro_scale.collected import Chains, Plan
from pyro_scale.compile import CompiledModel
from pyro_scale.draws import over_draws, thinned
from pyro_scale.errors import NonFiniteError, StoppedError
from pyro_scale.health import Check, Health, at_most, of_ending, of_noise, of_sds, tell
from pyro_scale.law import law_of
from pyro_scale.mixing import of_still
from pyro_scale.mode import DENSE_LIMIT
from pyro_scale.posterior import Posterior
from pyro_scale.temperature import Directions, Measured, sd_from_momenta
from pyro_scale.types import Kernel

logger = logging.getLogger("pyro_scale")

SPREAD_DRAWS, SPREAD_NUMBERS = 100, 2**22
"""Draws of a chain, and numbers in all, among which the spread of sites is looked at."""
MOST_DIRECTIONS = 16
"""Of a site, whose laws are computed."""


def outcome_of(
    compiled: CompiledModel,
    kernel: Kernel,
    plan: Plan,
    chains: Chains,
    origin: Mapping[str, Any],
    *,
    progress: bool,
) -> Posterior:
    """The posterior of a run, with a warning where it ended early or a check failed.

    Args:
        compiled: the model.
        kernel: as it ran.
        plan: how long, and what was kept.
        chains: what is left of it.
        origin: where it came from, for `posterior.settings`.
        progress: whether to say that all checks passed, too.

    Raises:
        NonFiniteError, StoppedError, Exception: as `infer`.
    """
    num_draws = chains.log_posterior.shape[1]
    posterior = _posterior(compiled, kernel, plan, chains, origin) if num_draws else None
    if chains.ending is None:
        assert posterior is not None
        judge(posterior, progress)
        return posterior
    message = f"The run ended early: {chains.ending.reason}"
    if (error := chains.ending.error) is not None:
        error.posterior = posterior  # type: ignore[attr-defined]
        if posterior is not None:
            logger.error("%s. The error's `posterior` holds %d draws a chain.", message, num_draws)
        raise error
    if chains.ending.failed:
        drawn = f"This error's `posterior` holds the draws made before: {num_draws} a chain." if num_draws else ""
        raise NonFiniteError(f"{message} {drawn}".strip(), posterior)
    if posterior is None:
        raise StoppedError(chains.ending.reason)
    logger.warning("%s; it has %d of %d draws a chain.", message, num_draws, plan.num_samples)
    judge(posterior, progress)
    return posterior


def judge(posterior: Posterior, progress: bool) -> None:
    """Warns of failed checks. The draws are not lost to what a check may meet in a model."""
    try:
        ended = of_ending(posterior.settings.get("ended_early"))  # has been told
        tell(Health([check for check in posterior.verdict.checks if check not in ended]), progress)
    except Exception as error:
        logger.warning("The run could not be judged: %s.", first_line(error))


def _posterior(
    compiled: CompiledModel, kernel: Kernel, plan: Plan, chains: Chains, origin: Mapping[str, Any]
) -> Posterior:
    began = time.perf_counter()
    settings = {
        "method": type(kernel).__name__,
        "kernel": repr(kernel),
        **origin,
        "num_chains": plan.num_chains,
        "num_samples": plan.num_samples,
        "warmup_steps": plan.pilot_steps + plan.warmup_steps,
        "thinning": plan.thinning,
        "sampling_steps": len(plan.sampling_steps),  # those that draws could be kept from
        "batch_size": compiled.batch_size,
        "num_data": compiled.num_data,
        "temperature": None if callable(kernel.temperature) else kernel.temperature,
        "dtype": str(compiled.data.dtype).removeprefix("torch."),
        "steps_run": chains.how,
        "clamped": chains.clamped.tolist(),
        "ended_early": chains.ending.reason if chains.ending else None,
    }
    try:
        checks = _checks(compiled, kernel, plan, chains, settings)
    except Exception as error:  # as in `judge`
        logger.warning("The run could not be judged: %s.", first_line(error))
        checks = []
    stats = {"lp": chains.log_posterior}
    if chains.kinetic:  # of each site, relative to temperature 1
        stats["kinetic_temperature"] = torch.stack(list(chains.kinetic.values()), -1) * compiled.num_data
    return Posterior(
        chains.draws,
        sample_stats=stats,
        num_steps=plan.pilot_steps + chains.num_steps,
        step_size=chains.step_size,
        timing={**chains.seconds, "health": time.perf_counter() - began},
        settings=settings,
        compiled=compiled,
        kernel=kernel,
        checks=checks,
        warmup=chains.warmup,
        moments=chains.moments,
    )


def _checks(
    compiled: CompiledModel, kernel: Any, plan: Plan, chains: Chains, settings: Mapping[str, Any]
) -> list[Check]:
    """What the draws alone do not show."""
    found = [*of_ending(settings["ended_early"])]
    if kernel.temperature != 0:
        found += of_still({name: chains.draws[name] for name in compiled.latent if name in chains.draws})
    if hasattr(kernel, "gradient_variance"):
        share = 1.0 if compiled.batch_size is None else compiled.batch_size / compiled.num_data
        moved = sum(shape.numel() * (share if name in compiled.local else 1) for name, shape in compiled.latent.items())
        found.append(of_noise(int(chains.clamped.sum()), round(moved * plan.num_chains * chains.num_steps)))
    constant = not callable(kernel.step_size) and not callable(kernel.temperature) and kernel.temperature > 0
    if not constant or (not settings["tuning"] and why_not_examined(compiled, chains.draws)):
        return found
    if tuning := settings["tuning"]:
        found.append(_predicted(kernel, tuning["largest_curvature"], settings["bias_tolerance"]))
    limit = 2 * settings["bias_tolerance"]
    heat = "Minibatch noise heats the chains: raise batch_size, lower step_size, or leave it None to have it tuned."
    cold = "Momenta have not settled: raise warmup_steps."
    if getattr(kernel, "gradient_variance", 0.0):
        cold = "gradient_variance takes out more noise than minibatches bring: lower it."
    momenta = of_sds("sd error, by momenta", _sds(compiled, kernel, chains, tuning), limit, heat, cold)
    return [*found, *([momenta] if momenta is not None else [])]


def _predicted(kernel: Any, curvature: float, tolerance: float) -> Check:
    """What a step of the size that tuning chose does where the curvature is largest."""
    if hasattr(kernel, "gradient_variance"):  # by site, where the law is that of one number
        kernel = replace(kernel, gradient_variance=0.0)
    error = abs(law_of(kernel, kernel.step_size, curvature).sd - 1)
    remedy = "no step size was small enough. Rescale or reparametrise the model, or raise bias_tolerance."
    return at_most("sd error, predicted of step size", error, tolerance, "", remedy)


def _sds(compiled: CompiledModel, kernel: Any, chains: Chains, tuning: Mapping[str, Any]) -> dict[str, Measured]:
    """Site -> by how much its sds are wrong, as momenta tell."""
    epoch = compiled.num_data / (compiled.batch_size or compiled.num_data)
    sites = {name: kinetic for name, kinetic in chains.kinetic.items() if compiled.latent[name].numel() > 0}
    if not sites or epoch <= 1:  # they tell of minibatches alone
        return {}
    along = dict.fromkeys(sites, Directions.alike()) if tuning else _directions(compiled, kernel, chains.draws)
    taken = getattr(kernel, "gradient_variance", 0.0)
    found = {}
    for name in sites.keys() & along.keys():
        subtracted = float(taken[name].mean()) if isinstance(taken, dict) else float(taken)
        kinetic = sites[name].double()
        seen = sd_from_momenta(kernel, compiled.num_data, epoch, kinetic, along[name], subtracted)
        if seen is not None:
            found[name] = seen
    return found


def _directions(compiled: CompiledModel, kernel: Any, draws: Mapping[str, Tensor]) -> dict[str, Directions]:
    """Of the sites of a normal posterior with the covariance of the draws, or the variances where there are few."""
    latent = {name: draws[name] for name in compiled.latent}
    num_chains, num_samples = next(iter(latent.values())).shape[:2]
    size = max(1, tree.size(latent) // (num_chains * num_samples))
    some = thinned(latent, min(num_samples, SPREAD_DRAWS, max(1, SPREAD_NUMBERS // (size * num_chains))))
    flat = {name: value.flatten(0, 1) for name, value in some.items()}
    positions = over_draws(compiled.unconstrain, flat, num_rows=compiled.rows_run(list(latent)))
    vectors = torch.cat([leaf.reshape(len(leaf), -1).double() for leaf in positions.values()], 1)
    if len(vectors) < 2:
        return {}
    variances, axes = vectors.var(0), None
    if size <= DENSE_LIMIT and len(vectors) >= A_COORDINATE * size and vectors.isfinite().all():
        variances, axes = torch.linalg.eigh(torch.cov(vectors.T).reshape(size, size))
    curvatures = kernel.temperature / compiled.num_data / variances
    found, first = {}, 0
    for name, shape in compiled.latent.items():
        own = slice(first, first + shape.numel())
        first += shape.numel()
        if axes is None:
            shares, here = torch.full((shape.numel(),), 1 / max(1, shape.numel())).double(), curvatures[own]
        else:
            shares, here = axes[own].square().mean(0), curvatures
        if shape.numel() > 0 and (here.isfinite() & (here > 0)).all():
            found[name] = _grouped(here, shares)
    return found


def _grouped(curvatures: Tensor, shares: Tensor) -> Directions:
    """A few directions in place of many of nearly the same curvature."""
    order = curvatures.argsort()
    parts = [part for part in order.chunk(MOST_DIRECTIONS) if float(shares[part].sum()) > 0]
    weights = torch.stack([shares[part].sum() for part in parts])
    means = torch.stack([(shares[part] * curvatures[part]).sum() for part in parts]) / weights
    return Directions(means, weights)
