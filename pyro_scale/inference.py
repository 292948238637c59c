"""`infer`: from a Pyro model, its data and the name of a method to a posterior."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

from pyro_scale.approximate import approximated
from pyro_scale.asked import kernel_of, refuse_chains, sites_kept, with_step_size
from pyro_scale.checks import check_count, checked_seed, derived_seeds
from pyro_scale.choice import JitCompile, check_jit_compile
from pyro_scale.collected import Plan
from pyro_scale.compile import compile_model
from pyro_scale.data import Model
from pyro_scale.errors import ArgumentError, UntunedError
from pyro_scale.fit import Request
from pyro_scale.initial import initial_positions
from pyro_scale.local import UNCHANGED
from pyro_scale.outcome import outcome_of
from pyro_scale.posterior import Posterior
from pyro_scale.progress import Callback, Reporter
from pyro_scale.sample import run_chains
from pyro_scale.schedules import check_number
from pyro_scale.standing_priors import prior_of, with_prior
from pyro_scale.superchains import check_superchains, together
from pyro_scale.threads import suit_threads, threads_kept
from pyro_scale.tunable import why_not_tuned
from pyro_scale.types import Kernel
from pyro_scale.warmup import Tuned, Tuner

logger = logging.getLogger("pyro_scale")

ONE_DRAW_WARMUP = 1000
PILOT_SHARE = 75
"""Per cent of the warm-up steps that the pilot may take, where their number is given."""


@threads_kept()
def infer(
    model: Model,
    data: Any,
    method: str | Kernel = "sghmc",
    *,
    num_samples: int = 1000,
    warmup_steps: int | None = None,
    num_chains: int = 4,
    num_superchains: int | None = None,
    thinning: int | None = None,
    batch_size: int | None = None,
    constants: Mapping[str, Any] | None = None,
    prior: Posterior | None = None,
    initial: Literal["prior", "mode"] | Mapping[str, Any] | None = None,
    seed: int | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    keep: Sequence[str] | None = None,
    save_warmup: bool = False,
    jit_compile: JitCompile = "auto",
    bias_tolerance: float = 0.05,
    progress: bool = True,
    callback: Callback | None = None,
) -> Posterior:
    """Draws from the posterior of a Pyro model by a scalable kernel, from minibatches if `batch_size` says so.

    Every chain takes `warmup_steps + num_samples * thinning` steps, and a fit `warmup_steps`. Thousands of chains of
    one draw each, started apart by `initial="prior"`, are parallel SGMCMC; at temperature 0 they are a deep ensemble.

    Args:
        model: an ordinary Pyro model, written for all of the data, its rows in a plate: `plate("data", len(x))` on
            what it is passed, `plate("data", N, subsample=indices)`, or `plate("data", N, subsample_size=B) as idx`, by
            whose indices it reads its rows. Its prior is not rescaled. Discrete latent sites are summed out, and have
            no draws. Sites may have a value for each row: a step moves those of its minibatch, in units of sqrt(N).
        data: tensor, array, tuple of them in the order of the model's arguments, or dict by argument, with a common
            leading dimension N; memory-mapped ones stay on disk unless dtype or device ask for a copy, or an index
            column is of 8 or 16 bits. A `Dataset`, read into memory once. A shuffling `DataLoader`, whose batches all
            chains share; items are matched as data are. `{}` for a model that closes over its data, whose plate says N.
        method: "sghmc", "baoab", "sgnht", "sgld", "psgld", or a kernel from `ps.kernels`. Others fit, without chains:
            "map", "ensemble", "vi_diag", "vi_dense", "vi_lowrank", "laplace_diag", "laplace_dense", "laplace_kfac",
            "laplace_lowrank", "swag", "svgd", "ekf_diag", "ekf_dense"; see their kernels. A string, or a kernel without
            a step_size, is tuned: the mode and a pilot run choose coordinates, control variates, step size, V and
            thinning; beyond 300 coordinates by diagonals, from starts near a mode. For this the rows of a `DataLoader`
            are read once, or a sample of them; a sample, and items that are changed at random, have no control
            variates. Values of rows in minibatches follow what all rows share, which is tuned by its marginal
            posterior; where they do not to first order, as with a group sd near 0, the kernel takes its default step
            size instead, which suits covariates of unit scale. One with a step_size runs as configured.
        num_samples: draws kept by a chain, or taken from a fitted normal; >= 1. A mode is one draw, and particles are
            as many as their kernel has.
        warmup_steps: steps before the first draw is kept, those of the pilot run included; >= 0. None takes as many as
            tuning needs; untuned, half as many as follow, or 1000 with num_samples=1, where nothing follows that could
            make up for a start far away. Of a fit it is the number of its steps, and None as many as 20 passes through
            the rows, from 2000 to 20,000, or none where Newton's method has found the mode that was asked for.
            Leave it out for a filter, which takes in every row once.
        num_chains: chains, run side by side; members of an ensemble; >= 1. Other fits are one, whatever it says.
        num_superchains: from 2 to half of the chains, which it divides: so many groups of chains start together, for
            `ps.diagnostics.rhat_nested`, which tells of short chains too whether they have forgotten their starts. None
            starts every chain by itself.
        thinning: steps from one kept draw to the next; >= 1; None takes as many as brought an independent draw in the
            pilot run, and 200 values of a row a chain, up to 1000; untuned 10, or 1 with num_samples=1; of fits there
            is none. With a `ps.schedules.cyclical` step size the draws are spread evenly over the sampling phases of as
            many steps.
        batch_size: rows of a minibatch, 1 to N; None uses all rows at every step, or the plate's own
            `subsample_size`, or the loader's.
        constants: keyword arguments that the model receives whole.
        prior: the posterior of an earlier call, whose normal `approximation` of the latent sites then stands in the
            place of the model's prior: learning from data that come in parts, without the earlier ones. None keeps the
            model's.
        initial: where chains start. None: uniformly within 2 of 0 in each unconstrained coordinate. "prior": each at a
            draw of its own from the prior. "mode": each at the mode that it climbs to from its start by None, which
            takes seconds a chain. A dict, site -> constrained value of the site's shape, for all chains, or
            `(num_chains, *site)`, one a chain; sites that it lacks start as by None. The start of a chain depends on
            the seed and its number alone, and is drawn anew while log density or gradient are not finite. Tuning
            climbs from up to four of these starts, and the chains then start where the pilot run has been. A fit starts
            at the first of them, an ensemble at one a member; without a step_size at the mode above it, and a filter at
            the prior's mode.
        seed: of all randomness; None takes a fresh one, which `posterior.settings` tells.
        device: where to compute; None for that of the data.
        dtype: floating type of data and draws; None for that of the data.
        keep: names of the sites whose draws are kept; None for all, and in a minibatched run for all but those that
            follow the rows. Where these are latent, `posterior.moments` has their mean and standard deviation.
        save_warmup: keep the positions of the warm-up after the pilot run as well, every `thinning`-th, for
            `posterior.add_groups("warmup_posterior")`.
        jit_compile: True compiles the steps to a native loop (seconds, and a C++ compiler is needed), which gathers its
            minibatches itself; False runs a recorded graph, step by step. "auto" starts with the latter and compiles
            when what is left of the run repays it, as measured, or as known from an earlier run. The draws are the same
            up to rounding. What cannot be compiled runs as with False, and a log line says why;
            `posterior.settings["steps_run"]` tells how the last step ran.
        bias_tolerance: by how much a tuned step size may bias the sds of a normal posterior, relative to them; > 0.
        progress: show a progress bar on a terminal.
        callback: called with a `Progress` a few times a second, from the pilot run on; returning True stops the run and
            keeps its draws.

    Returns:
        The posterior. Ctrl-C returns what has been drawn so far. Its `timing` adds up to the call: "prepare" (until
        the chains have starts), "tune", "capture", "compile", "sample" and "constrain" (from positions to draws).

    Raises:
        ArgumentError, DataError, ModelError, MinibatchError, StartError: before any sampling; see `compile_model`.
        NonFiniteError: a chain met NaN or infinity; its `posterior` holds the draws made until then.
        StoppedError: the callback stopped the run before the first draw, in the pilot run too.
        Exception: what the callback or, in mid-run, the model raises; its `posterior` holds the draws made until then.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("obs", dist.Normal(mu, 1.0), obs=y)
        >>> posterior = infer(model, {"y": torch.ones(100)}, num_samples=50, num_chains=2, batch_size=10, seed=0)
        >>> posterior.draws["mu"].shape
        torch.Size([2, 50])

    References:
        Duffield, Donatella, Chiu, Klett & Simpson (2024), Scalable Bayesian learning with posteriors,
        arXiv:2406.00104, on parallel SGMCMC.
    """
    began = time.perf_counter()
    kernel = kernel_of(method)
    num_samples = check_count("num_samples", num_samples, 1)
    num_chains = check_count("num_chains", num_chains, 1)
    num_superchains = check_superchains(num_superchains, num_chains)
    one = num_samples == 1
    thinning = None if thinning is None else check_count("thinning", thinning, 1)
    warmup_steps = None if warmup_steps is None else check_count("warmup_steps", warmup_steps, 0)
    check_number("infer", "bias_tolerance", bias_tolerance, positive=True)
    if callback is not None and not callable(callback):
        raise ArgumentError(
            f"callback is {callback!r}; it must be a function of one argument, a Progress, that returns True to stop "
            "the run."
        )
    check_jit_compile(jit_compile)
    seed = checked_seed(seed)
    seeds = derived_seeds(seed, 3 + num_chains)
    compiled = compile_model(
        model, data, constants=constants, batch_size=batch_size, seed=seeds[0], device=device, dtype=dtype
    )
    suit_threads(compiled, num_chains)
    if prior is not None:
        compiled = with_prior(compiled, prior_of(prior, compiled))
    kept = sites_kept(compiled, keep)
    started = list(initial) if isinstance(initial, Mapping) else initial
    if hasattr(kernel, "fitting"):
        refuse_chains(kernel, num_superchains, thinning, save_warmup)
        request = Request(kept, num_samples, warmup_steps, num_chains, initial, seed, progress, callback, jit_compile)
        return approximated(compiled, kernel, request, began)
    start = [initial_positions(compiled, initial, seeds[3:])]
    seconds = {"prepare": time.perf_counter() - began}
    frame, pilot_steps, told = UNCHANGED, 0, {}
    least = (0 if warmup_steps is None else warmup_steps) + num_samples * (1 if thinning is None else thinning)
    reporter = Reporter(least, progress, callback)
    reason = why_not_tuned(compiled, kernel) if kernel.step_size is None else ""
    tuned: Tuned | None = None
    if kernel.step_size is None and not reason:
        most = None if warmup_steps is None else PILOT_SHARE * warmup_steps // 100
        pilot_seed = derived_seeds(seeds[0], 1)[0]
        with reporter.closed_by_errors():
            try:  # without a name of its own, the tuner and the rows that it holds are gone after this
                tuned = Tuner(compiled, kernel, start.pop(), pilot_seed, bias_tolerance, num_samples, reporter).tuned(
                    most
                )
            except UntunedError as error:
                reason, start = str(error), [initial_positions(compiled, initial, seeds[3:])]
        seconds["tune"] = time.perf_counter() - began - seconds["prepare"]
    if reason:
        logger.info("The run is not tuned, and takes the kernel's default step size: %s.", reason)
    if tuned is not None:
        kernel, frame, pilot_steps, told = tuned.kernel, tuned.frame, tuned.pilot_steps, tuned.told
        start.append(tuned.start)
        thinning = tuned.thinning if thinning is None and not one else thinning
        warmup_steps = pilot_steps + tuned.settling if warmup_steps is None else warmup_steps
    if num_superchains is not None:
        start = [together(start.pop(), num_superchains)]
        frame = frame._replace(anchor=together(frame.anchor, num_superchains))
    kernel = with_step_size(kernel)
    thinning = (1 if one else 10) if thinning is None else thinning
    if warmup_steps is None:
        warmup_steps = ONE_DRAW_WARMUP if one else num_samples * thinning // 2
    sampling = getattr(kernel.step_size, "sampling", None)
    settling = warmup_steps - pilot_steps
    plan = Plan(num_samples, settling, thinning, num_chains, kept, save_warmup, sampling, pilot_steps)
    ready = time.perf_counter()
    # popped: the chains leave their starts, which nothing is to hold in memory then
    chains = run_chains(
        compiled, kernel, plan, start.pop(), seeds[1:3], reporter=reporter, jit_compile=jit_compile, frame=frame
    )
    constraining = time.perf_counter() - ready - sum(chains.seconds.values())  # all that is left after the last step
    seconds |= {**chains.seconds, "constrain": constraining}
    origin: dict[str, Any] = {
        "seed": seed,
        "initial": started,
        "num_superchains": num_superchains,
        "bias_tolerance": bias_tolerance,
    }
    origin["tuning"] = told
    return outcome_of(compiled, kernel, plan, chains._replace(seconds=seconds), origin, progress=progress)
