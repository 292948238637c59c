"""Is a Gaussian approximation close to the posterior? Pareto k of importance weights, and draws resampled by them."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from pyro_scale.checks import check_count, check_seed, derived_seeds
from pyro_scale.compile import CompiledModel
from pyro_scale.draws import over_draws
from pyro_scale.errors import ArgumentError, MissingModelError
from pyro_scale.gaussians import sample
from pyro_scale.hessian import row_blocks
from pyro_scale.posterior import Posterior
from pyro_scale.types import Batch, Gaussian, Position

from .psis import LEAST_DRAWS, Array, largest_k, smoothed


@dataclass(frozen=True)
class ImportanceCheck:
    """Whether draws from an approximation can stand for draws from the posterior; printed as a sentence.

    Attributes:
        k: Pareto shape of the importance weights.
        effective_size: how many draws from the posterior the weighted draws are worth.
        num_samples: how many were drawn.
        draws: where asked for, draws resampled by the smoothed weights: site -> `(1, n, *site)`, constrained.
    """

    k: float
    effective_size: float
    num_samples: int
    draws: dict[str, Tensor] = field(default_factory=dict)

    @property
    def limit(self) -> float:
        """The largest k that is reliable: 0.7, or less for fewer than 2200 draws."""
        return largest_k(self.num_samples)

    @property
    def passed(self) -> bool:
        """Whether k is within its limit."""
        return self.k <= self.limit

    def __str__(self) -> str:
        found = (
            f"Pareto k is {self.k:.2f}, limit {self.limit:.2f}; {self.num_samples} weighted draws are worth "
            f"{self.effective_size:.0f}. "
        )
        if self.passed and self.k < 0.5:
            verdict = "The approximation is close to the posterior."
        elif self.passed:
            verdict = "The approximation is usable where its draws are weighted: resampled=n gives such draws."
        else:
            verdict = (
                "The approximation is not close to the posterior, and weights do not mend it. Use a richer one (dense "
                "in place of diagonal), reparametrise the model, or draw by sghmc."
            )
        return textwrap.fill(found + verdict, 110)

    __repr__ = __str__


def khat(
    posterior: Posterior, *, num_samples: int = 2000, resampled: int | None = None, seed: int = 0
) -> ImportanceCheck:
    r"""Pareto k of the importance weights of a Gaussian approximation, all rows counted.

    Draws $\theta \sim q$ are weighted by $p(\theta, y) / q(\theta)$, both densities of unconstrained positions. Their
    largest weights are fitted by a generalised Pareto distribution of shape k: below 0.5 the approximation is good, up
    to 0.7 weights mend it, above they do not: Yao, Vehtari, Simpson & Gelman (2018).

    It judges the approximation as a joint distribution, and grows with the number of parameters: means of single
    parameters may be right where k is large. It is blind to what the approximation never draws, as a second mode.

    Args:
        posterior: by a Gaussian method, with its model.
        num_samples: new draws from the approximation, each evaluated on all rows; at least 25.
        resampled: so many of these are drawn by their smoothed weights, and returned as `draws`; None for none.
        seed: of the draws.

    Raises:
        ArgumentError: the posterior is no approximation, one of another temperature than 1, or has no density at its
            draws.
        MissingModelError: the posterior was loaded without its model.

    Example:
        >>> import pyro, pyro.distributions as dist, pyro_scale as ps
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("obs", dist.Normal(mu, 1.0), obs=y)
        >>> posterior = ps.infer(model, {"y": torch.zeros(99)}, method="laplace_dense", seed=0)  # is normal itself
        >>> found = khat(posterior, resampled=500)
        >>> found.passed, found.draws["mu"].shape
        (True, torch.Size([1, 500]))

    References:
        Yao, Vehtari, Simpson & Gelman (2018), Yes, but did it work?: evaluating variational inference, ICML.
    """
    num_samples = check_count("num_samples", num_samples, LEAST_DRAWS)
    if resampled is not None:
        resampled = check_count("resampled", resampled, 1)
    seeds = derived_seeds(check_seed(seed), 2)
    if not isinstance(posterior, Posterior):
        raise ArgumentError(f"khat got a {type(posterior).__name__}; it takes a posterior, as infer returns.")
    compiled = posterior.compiled
    if compiled is None:
        raise MissingModelError(
            "khat runs the model, and this posterior was loaded without it. Load it with "
            "ps.load(path, model=model, data=data), or take the posterior that infer returned."
        )
    approximation = posterior.approximation
    if approximation is None:
        method = posterior.settings.get("method", "this method")
        raise ArgumentError(
            f"khat judges a Gaussian approximation by its density, and {method} made none. posterior.health has its "
            "checks."
        )
    check_temperature("khat", posterior, scheduled=True)
    positions, log_ratios = weighted_positions(compiled, approximation, num_samples, seeds[0])
    log_weights, k = smoothed(log_ratios)
    weights = np.exp(log_weights)
    draws = {}
    if resampled is not None:
        chosen = torch.from_numpy(_resample(weights, resampled, seeds[1]))
        few = {name: leaf[chosen.to(leaf.device)] for name, leaf in positions.items()}
        values = constrained(compiled, few, compiled.kept)
        draws = {name: value.unsqueeze(0) for name, value in values.items()}
    return ImportanceCheck(float(k), float(1 / (weights**2).sum()), num_samples, draws)


def check_temperature(wanted_by: str, posterior: Posterior, *, scheduled: bool) -> None:
    """Raises `ArgumentError` if its temperature is not 1, or changed along the run and `scheduled` is False.

    A posterior whose settings do not tell it, as one made by hand, has temperature 1.
    """
    temperature = posterior.settings.get("temperature", 1.0)
    if temperature == 1 or (temperature is None and scheduled):
        return
    told = "a schedule" if temperature is None else f"{temperature:g}"
    raise ArgumentError(
        f"{wanted_by} weights draws as those of the posterior itself, and the temperature of this one is {told}. Fit "
        "again with temperature=1."
    )


def weighted_positions(
    compiled: CompiledModel, approximation: Gaussian, num_samples: int, seed: int
) -> tuple[Position, Array]:
    """Draws from an approximation, and log posterior - log density of each, all rows counted, block by block."""
    positions = sample(approximation, num_samples, torch.Generator().manual_seed(seed))
    log_q = over_draws(approximation.log_prob, positions).double()
    log_p = torch.zeros_like(log_q)
    for batch in row_blocks(compiled):
        of_rows = partial(_log_posterior, compiled, batch)
        log_p += over_draws(of_rows, positions, num_rows=len(batch.indices)).double()
    log_ratios = (log_p - log_q).nan_to_num(nan=-torch.inf, neginf=-torch.inf).cpu().numpy()
    if (finite := int(np.isfinite(log_ratios).sum())) < LEAST_DRAWS:
        raise ArgumentError(
            f"The posterior has a finite density at {finite} of {num_samples} draws from the approximation; at least "
            f"{LEAST_DRAWS} are needed. Check the approximation's draws, and the model at them."
        )
    return positions, log_ratios


def _log_posterior(compiled: CompiledModel, batch: Batch, position: Position) -> Tensor:
    return compiled.log_posterior(position, batch) / batch.scale


def constrained(compiled: CompiledModel, positions: Position, names: Sequence[str]) -> dict[str, Tensor]:
    """Values of sites at positions with a leading axis, in the model's own space."""

    def values(position: Position) -> dict[str, Tensor]:
        return compiled.constrain(position, names)

    found: dict[str, Tensor] = over_draws(values, positions, num_rows=compiled.rows_run(names))
    return found


def check_draws(wanted_by: str, draws: Mapping[str, Tensor]) -> None:
    """Raises `ArgumentError` where draws `(num_chains, num_samples, *site)` are too few, or not finite."""
    num_chains, num_samples = next(iter(draws.values())).shape[:2]
    if num_chains * num_samples < LEAST_DRAWS:
        raise ArgumentError(
            f"{wanted_by} weights draws by importance, and needs at least {LEAST_DRAWS}; the posterior has "
            f"{num_chains} x {num_samples}. Raise num_samples."
        )
    for name, value in draws.items():
        if bad := int((~value.isfinite()).sum()):
            raise ArgumentError(
                f"{wanted_by}: {bad} of the draws of site '{name}' are not finite. Draw anew with a smaller step_size, "
                "or leave it None to have it tuned."
            )


def _resample(weights: Array, n: int, seed: int) -> Array:
    """Indices of `n` draws by their weights: each as often as its weight says, rounded up or down at random."""
    start = float(torch.rand((), generator=torch.Generator().manual_seed(seed), dtype=torch.float64, device="cpu"))
    places = (np.arange(n) + start) / n
    return np.minimum(np.searchsorted(weights.cumsum(), places), len(weights) - 1)
