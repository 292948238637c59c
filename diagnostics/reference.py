"""The reference: NUTS on the same compiled model, whitened at the posterior mode."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.func import grad_and_value

from pyro_scale import tree
from pyro_scale.capture import record_or_keep
from pyro_scale.compile import CompiledModel, compile_model
from pyro_scale.data import Model
from pyro_scale.draws import over_draws
from pyro_scale.errors import ArgumentError, StartError
from pyro_scale.inference import check_count, checked_seed, derived_seeds
from pyro_scale.mode import find_mode
from pyro_scale.posterior import Posterior
from pyro_scale.types import Batch
from pyro_scale.whitening import Whitened

from .samplers import Potential, sample_nutpie, sample_pyro

logger = logging.getLogger("pyro_scale")

START_ATTEMPTS = 100
START_RADIUS = 2.0


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
) -> Posterior:
    """Draws from the posterior of a Pyro model by the no-U-turn sampler on all rows, as a reference.

    The chains run in coordinates whitened at the posterior mode, on the captured log posterior, and start within 2
    posterior standard deviations of the mode in every such coordinate. Where no mode is found they run in the
    unconstrained coordinates, and a log line says so. Step size and a diagonal mass matrix are adapted in warm-up.

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

    Returns:
        A posterior with `lp`, `diverging`, `step_size` and `acceptance_rate` in `sample_stats`; its `num_steps` is
        the mean number of gradients of a chain.

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
    check_count("num_samples", num_samples, 1)
    check_count("num_chains", num_chains, 1)
    warmup_steps = num_samples if warmup_steps is None else warmup_steps
    check_count("warmup_steps", warmup_steps, 0)
    _check_sampler(sampler, warmup_steps)
    seed = checked_seed(seed)
    seeds = derived_seeds(seed, 2 + 2 * num_chains)
    began = time.perf_counter()
    compiled = compile_model(model, data, constants=constants, seed=seeds[0])
    potential, coordinates = _potential(compiled, seeds[1])
    starts = [_start(potential, coordinates, chain_seed) for chain_seed in seeds[2 : 2 + num_chains]]
    captured = time.perf_counter()
    potential.calls = 0
    sample = sample_pyro if sampler == "pyro" else sample_nutpie
    run = sample(potential, starts, num_samples, warmup_steps, seeds[2 + num_chains :])
    timing = {"capture": captured - began, "sample": time.perf_counter() - captured}
    settings = {
        "method": f"NUTS ({sampler})",
        "seed": seed,
        "num_chains": num_chains,
        "num_samples": num_samples,
        "warmup_steps": warmup_steps,
        "thinning": 1,
        "batch_size": None,
        "num_data": compiled.num_data,
        "dtype": str(compiled.data.dtype).removeprefix("torch."),
        "whitened": coordinates.whitened is not None,
    }
    return Posterior(
        _constrained(compiled, coordinates, run.draws),
        sample_stats=run.stats,
        num_steps=round(potential.calls / num_chains),
        step_size=float(run.stats["step_size"][:, -1].mean()),
        timing=timing,
        settings=settings,
        compiled=compiled,
    )


class Coordinates(NamedTuple):
    """From the vector that NUTS moves to a position of the model."""

    shapes: dict[str, torch.Size]
    whitened: Whitened | None

    def position(self, vector: Tensor) -> dict[str, Tensor]:
        """The model's position, undoing the whitening."""
        z = tree.unravel(vector, self.shapes)
        return z if self.whitened is None else self.whitened.position(z)


def _potential(compiled: CompiledModel, seed: int) -> tuple[Potential, Coordinates]:
    start = compiled.initial_position(seed)
    mode = find_mode(compiled, start, seed=seed)
    if not mode.converged:
        logger.info("NUTS runs in the unconstrained coordinates: no posterior mode was found to whiten at.")
    coordinates = Coordinates(tree.shapes(start), Whitened(compiled, mode, 1) if mode.converged else None)
    batch = compiled.batch()

    def log_posterior(vector: Tensor, batch: Batch) -> Tensor:
        return compiled(coordinates.position(vector), batch)

    example = torch.full_like(tree.ravel(start), 0.1)
    function, _ = record_or_keep(grad_and_value(log_posterior), example, batch, fixed={1})
    return Potential(lambda vector: function(vector, batch), example), coordinates


def _start(potential: Potential, coordinates: Coordinates, seed: int) -> Tensor:
    """Uniform within 2 of the origin in every coordinate, tried until it is finite; nearer after every attempt."""
    generator = torch.Generator().manual_seed(seed)
    radius = START_RADIUS
    for _ in range(START_ATTEMPTS):
        uniform = 2 * torch.rand(potential.example.shape, generator=generator, dtype=torch.float64) - 1
        vector = (radius * uniform).to(potential.example)
        gradient, value = potential.evaluate(vector)
        if torch.isfinite(value) and torch.isfinite(gradient).all():
            return vector
        radius *= 0.95
    raise StartError(f"No start with a finite log density in {START_ATTEMPTS} attempts near the mode.")


def _constrained(compiled: CompiledModel, coordinates: Coordinates, draws: Tensor) -> dict[str, Tensor]:
    """Draws of every site, `(num_chains, num_samples, *site)`, from `(num_chains, num_samples, d)` vectors."""

    def one(draw: dict[str, Tensor]) -> dict[str, Tensor]:
        return compiled.constrain(coordinates.position(draw["vector"]))

    values = over_draws(one, {"vector": draws.flatten(0, 1)})
    return {name: value.unflatten(0, draws.shape[:2]) for name, value in values.items()}


def _check_sampler(sampler: object, warmup_steps: int) -> None:
    if sampler not in ("pyro", "nutpie"):
        raise ArgumentError(f"sampler is {sampler!r}; it must be 'pyro' or 'nutpie'.")
    if sampler == "nutpie" and find_spec("nutpie") is None:
        raise ArgumentError("sampler='nutpie' needs the package nutpie: pip install 'pyro-scale[nutpie]'.")
    if sampler == "nutpie" and warmup_steps < 2:
        raise ArgumentError(f"warmup_steps is {warmup_steps}; sampler='nutpie' needs at least 2, sampler='pyro' none.")
