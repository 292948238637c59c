"""The reference: NUTS on the same compiled model, whitened at the posterior mode."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pyro_scale.capture import record_or_keep
from pyro_scale.checks import check_count, checked_seed, derived_seeds
from pyro_scale.choice import JitCompile, check_jit_compile
from pyro_scale.compile import CompiledModel
from pyro_scale.data import Model
from pyro_scale.derivative import grad_and_value
from pyro_scale.draws import over_draws
from pyro_scale.errors import ArgumentError, StartError
from pyro_scale.handlers import near_zero
from pyro_scale.health import of_divergences
from pyro_scale.outcome import judge
from pyro_scale.plates import prepare
from pyro_scale.posterior import Posterior
from pyro_scale.progress import Reporter
from pyro_scale.sites import describe
from pyro_scale.starts import ATTEMPTS
from pyro_scale.threads import suit_threads, threads_kept
from pyro_scale.types import Batch

from .coordinates import Coordinates, find_coordinates
from .samplers import Potential, Run, nutpie_chain, pyro_chain

logger = logging.getLogger("pyro_scale")

GUESS = (20, 7)
"""How long trees are is not known at first: as if 20 iterations had taken 7 gradients each."""


@threads_kept()
def nuts(
    model: Model,
    data: Any,
    *,
    constants: Mapping[str, Any] | None = None,
    num_samples: int = 1000,
    warmup_steps: int | None = None,
    num_chains: int = 4,
    seed: int | None = None,
    sampler: Literal["pyro", "nutpie"] = "pyro",
    jit_compile: JitCompile = "auto",
    progress: bool = True,
) -> Posterior:
    """Draws from the posterior of a Pyro model by the no-U-turn sampler on all rows, as a reference.

    The chains run on the captured log posterior, in coordinates whitened at the posterior mode. Each starts within 2
    posterior standard deviations, in every such coordinate, of the mode above a start of its own. Where no mode is
    found, or where draws from the normal at the mode show that it does not describe the posterior (a hierarchical model
    may have a mode at group sd 0), they run in the unconstrained coordinates, within 2 of 0, and a log line says so.
    Step size and a diagonal mass matrix are adapted in warm-up. Divergent draws are counted in a warning of the log.
    Every gradient is that of the recorded log posterior, or of native code compiled from it, which all chains share.

    Args:
        model: the Pyro model, as for `infer`.
        data: its data, as for `infer`; every gradient reads all of it.
        constants: keyword arguments that the model receives whole.
        num_samples: draws of a chain after warm-up; >= 1.
        warmup_steps: iterations of warm-up; >= 0; None takes as many as `num_samples`.
        num_chains: chains, one after another; >= 1.
        seed: of all randomness; None takes a fresh one.
        sampler: "pyro" for Pyro's own NUTS, "nutpie" for nutpie's (`pip install pyro-scale[nutpie]`), which is
            several times faster.
        jit_compile: True compiles the log posterior to native code (seconds, and a C++ compiler is needed); False runs
            it as recorded; "auto" starts as recorded and compiles when what is left of the run repays that. Where it
            cannot be compiled it runs as recorded, and a log line says why.
        progress: show a progress bar on a terminal.

    Returns:
        The posterior, on Ctrl-C of the chains that are complete. Its `sample_stats` are `lp`, `diverging`, `step_size`
        and `acceptance_rate`; its `num_steps` is the mean number of gradients of a chain. Its `timing` adds up to the
        call: "prepare" (until the model is a log posterior), "capture" (with mode and starts), "compile", "sample" and
        "constrain"; `settings["steps_run"]` is "captured", "compiled" or "eager".

    Raises:
        ArgumentError, DataError, ModelError, StartError: before any sampling.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("obs", dist.Normal(mu, 1.0), obs=y)
        >>> reference = nuts(model, {"y": torch.ones(100)}, num_samples=100, num_chains=1, seed=0)
        >>> reference.draws["mu"].shape
        torch.Size([1, 100])

    References:
        Hoffman & Gelman (2014), The no-U-turn sampler, JMLR 15.
    """
    num_samples = check_count("num_samples", num_samples, 1)
    num_chains = check_count("num_chains", num_chains, 1)
    warmup_steps = check_count("warmup_steps", num_samples if warmup_steps is None else warmup_steps, 0)
    _check_sampler(sampler, warmup_steps)
    check_jit_compile(jit_compile)
    seed = checked_seed(seed)
    seeds = derived_seeds(seed, 2 + 2 * num_chains)
    clock = [time.perf_counter()]
    table = prepare(model, data, constants)
    # all rows, whatever the plate's own subsample_size
    structure = describe(model, table, None, torch.Generator().manual_seed(seeds[0]))
    compiled = CompiledModel(model, table, structure, None)
    suit_threads(compiled, 1)
    clock.append(time.perf_counter())
    chain_seeds = seeds[2 : 2 + num_chains]
    coordinates = find_coordinates(compiled, [compiled.initial_position(each) for each in chain_seeds], seeds[1])
    potential = _potential(compiled, coordinates, jit_compile)
    starts = [_start(potential, center, each) for center, each in zip(coordinates.centers, chain_seeds, strict=True)]
    clock.append(time.perf_counter())
    potential.calls = 0
    chain = pyro_chain if sampler == "pyro" else nutpie_chain
    chains = [partial(chain, potential, *pair) for pair in zip(starts, seeds[2 + num_chains :], strict=True)]
    runs = _run_chains(chains, potential, num_samples, warmup_steps, progress)
    potential.choice.remember()
    clock.append(time.perf_counter())
    stats = {name: torch.stack([run.stats[name] for run in runs]) for name in runs[0].stats}
    draws = _constrained(compiled, coordinates, torch.stack([run.draws for run in runs]))
    clock.append(time.perf_counter())
    prepared, captured, sampled, constrained = np.diff(clock).tolist()
    compilation = potential.choice.seconds
    posterior = Posterior(
        draws,
        sample_stats=stats,
        num_steps=round(potential.calls / len(runs)),
        step_size=float(stats["step_size"][:, -1].mean()),
        timing={
            "prepare": prepared,
            "capture": captured,
            "compile": compilation,
            "sample": sampled - compilation,
            "constrain": constrained,
        },
        settings={
            "method": f"NUTS ({sampler})",
            "seed": seed,
            "num_chains": len(runs),
            "num_samples": num_samples,
            "warmup_steps": warmup_steps,
            "thinning": 1,
            "temperature": 1.0,
            "batch_size": None,
            "num_data": compiled.num_data,
            "dtype": str(compiled.data.dtype).removeprefix("torch."),
            "steps_run": potential.choice.how,
            "whitened": coordinates.whitened is not None,
        },
        compiled=compiled,
        checks=[of_divergences(stats["diverging"])],
    )
    judge(posterior, progress)
    return posterior


def _run_chains(
    chains: Sequence[Callable[..., Run]], potential: Potential, num_samples: int, warmup_steps: int, progress: bool
) -> list[Run]:
    """One chain after another; Ctrl-C returns those that are complete."""
    num_iterations = len(chains) * (warmup_steps + num_samples)
    reporter = Reporter(num_iterations, progress, None)
    done = 0

    def tick(iterations: int) -> None:
        nonlocal done
        done += iterations
        guessed, each = GUESS
        gradients = (potential.calls + guessed * each) / (done + guessed)
        potential.expect((num_iterations - done) * gradients)
        reporter.update(done, done)

    runs: list[Run] = []
    try:
        tick(0)
        for chain in chains:
            runs.append(chain(num_samples, warmup_steps, tick))
    except KeyboardInterrupt:
        if not runs:
            raise
        logger.warning("Interrupted: %d of %d chains are complete, and returned.", len(runs), len(chains))
    finally:
        reporter.close()
    return runs


def _potential(compiled: CompiledModel, coordinates: Coordinates, jit_compile: JitCompile) -> Potential:
    batch = compiled.batch()

    def log_posterior(vector: Tensor, batch: Batch) -> Tensor:
        return compiled(coordinates.position(vector), batch)

    example = torch.full_like(coordinates.centers[0], 0.1)
    function, _ = record_or_keep(grad_and_value(log_posterior), example, batch, fixed={1})
    return Potential(function, example, batch, jit_compile=jit_compile)


def _start(potential: Potential, center: Tensor, seed: int) -> Tensor:
    """Uniform within 2 of the center in every coordinate, tried until it is finite; nearer after every attempt."""
    generator = torch.Generator().manual_seed(seed)
    for attempt in range(ATTEMPTS):
        vector = center + 0.95**attempt * near_zero(center.shape, generator, center)
        if torch.isfinite(potential.evaluate(vector)[1]):
            return vector
    raise StartError(
        f"No start with a finite log density in {ATTEMPTS} attempts. Check that the prior allows the data."
    )


def _constrained(compiled: CompiledModel, coordinates: Coordinates, draws: Tensor) -> dict[str, Tensor]:
    """Draws of every site, `(num_chains, num_samples, *site)`, from `(num_chains, num_samples, d)` vectors."""

    def one(draw: dict[str, Tensor]) -> dict[str, Tensor]:
        return compiled.constrain(coordinates.position(draw["vector"]))

    values = over_draws(one, {"vector": draws.flatten(0, 1)}, num_rows=compiled.rows_run(compiled.kept))
    return {name: value.unflatten(0, draws.shape[:2]) for name, value in values.items()}


def _check_sampler(sampler: object, warmup_steps: int) -> None:
    if sampler not in ("pyro", "nutpie"):
        raise ArgumentError(f"sampler is {sampler!r}; it must be 'pyro' or 'nutpie'.")
    if sampler == "nutpie" and find_spec("nutpie") is None:
        raise ArgumentError("sampler='nutpie' needs the package nutpie: pip install 'pyro-scale[nutpie]'.")
    if sampler == "nutpie" and warmup_steps < 2:
        raise ArgumentError(f"warmup_steps is {warmup_steps}; sampler='nutpie' needs at least 2, sampler='pyro' none.")
