"""Posteriors made by hand from exact or invented draws, so that tests of what follows a run need no run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_scale.compile import CompiledModel, compile_model
from pyro_scale.posterior import Posterior

NOISE = 0.5


def regression(x: Tensor, y: Tensor | None = None) -> None:
    """Known noise and a standard normal prior: posterior and predictive distribution are normal."""
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[-1]]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.Normal(x @ w, NOISE), obs=y)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def exact_regression(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the coefficients."""
    precision = x.T @ x / NOISE**2 + torch.eye(x.shape[1], dtype=x.dtype)
    covariance = torch.linalg.inv(precision)
    return covariance @ (x.T @ y) / NOISE**2, covariance


def posterior_of(compiled: CompiledModel, draws: Mapping[str, Tensor], **changed: Any) -> Posterior:
    num_chains, num_samples = next(iter(draws.values())).shape[:2]
    given: dict[str, Any] = {
        "sample_stats": {"lp": torch.zeros(num_chains, num_samples)},
        "num_steps": 10 * num_samples,
        "step_size": 0.25,
        "timing": {"capture": 0.5, "sample": 1.5},
        "settings": {
            "method": "by hand",
            "warmup_steps": 7,
            "batch_size": compiled.batch_size,
            "num_data": compiled.num_data,
            "dtype": str(compiled.data.dtype).removeprefix("torch."),
        },
        "compiled": compiled,
    }
    return Posterior(draws, **{**given, **changed})


def spread_posterior(
    model: Callable[..., Any], data: Any, num_chains: int = 2, num_samples: int = 3, **compiling: Any
) -> Posterior:
    """Draws at random starts: no posterior, but values that every site can take."""
    compiled = compile_model(model, data, **compiling)
    rows = [
        [compiled.constrain(compiled.initial_position(10 * chain + draw)) for draw in range(num_samples)]
        for chain in range(num_chains)
    ]
    draws = {name: torch.stack([torch.stack([one[name] for one in row]) for row in rows]) for name in rows[0][0]}
    return posterior_of(compiled, draws)


def exact_posterior(x: Tensor, y: Tensor, num_chains: int = 4, num_samples: int = 5000, seed: int = 0) -> Posterior:
    """Independent draws from the posterior of `regression`."""
    mean, covariance = exact_regression(x, y)
    normals = torch.randn(num_chains, num_samples, len(mean), generator=generator(seed), dtype=torch.float64)
    draws = {"w": mean + normals @ torch.linalg.cholesky(covariance).T}
    return posterior_of(compile_model(regression, {"x": x, "y": y}), draws)
