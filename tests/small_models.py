"""Small models on which chains are run, with a start for each chain."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_scale.compile import CompiledModel
from pyro_scale.types import Position

NUM_ROWS = 20


def numbers(*shape: int, seed: int) -> Tensor:
    """Standard normals in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X = numbers(NUM_ROWS, 2, seed=1)
Y = X @ torch.tensor([0.7, -0.4], dtype=torch.float64) + 0.5 * numbers(NUM_ROWS, seed=2)
DATA = {"x": X, "y": Y}


def regression(x: Tensor, y: Tensor | None = None) -> None:
    """A vector site, a constrained scalar site and a deterministic site."""
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    pyro.deterministic("precision", sigma**-2)
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.Normal(x @ w, sigma), obs=y)


def known_variance(y: Tensor) -> None:
    """Conjugate: the posterior of mu is Normal(sum(y) / (N + 1), 1 / (N + 1))."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("obs", dist.Normal(mu, 1.0), obs=y)


def counts(x: Tensor, y: Tensor) -> None:
    """The gradient grows exponentially, so that a large step size soon leads to infinity."""
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.Poisson((x @ w).exp()), obs=y)


COUNTS = {"x": X, "y": (X[:, 0] + 1).exp().round()}


def bounded(y: Tensor) -> None:
    """Has no density beyond a spread of 1, which the prior does not say."""
    spread = pyro.sample("spread", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("obs", dist.Normal(0.0, (1 - spread**2).sqrt()), obs=y)


def correlated(y: Tensor) -> None:
    """The covariance matrix stops being one beyond a correlation of 1, which the prior does not say."""
    rho = pyro.sample("rho", dist.Normal(0.0, 1.0))
    one = torch.ones(())
    covariance = torch.stack([torch.stack([one, rho]), torch.stack([rho, one])])
    with pyro.plate("data", len(y)):
        pyro.sample("obs", dist.MultivariateNormal(torch.zeros(2), covariance), obs=y)


def decides_by_value(y: Tensor) -> None:
    """Python decides by the value of a site: nothing to record, nothing to vectorise."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    scale = 1.0 if float(mu.detach()) > 0 else 2.0
    with pyro.plate("data", len(y)):
        pyro.sample("obs", dist.Normal(mu, scale), obs=y)


def starts(compiled: CompiledModel, num_chains: int) -> Position:
    """The position every chain starts from, with a leading chain axis."""
    chains: list[Any] = [compiled.initial_position(seed) for seed in range(num_chains)]
    return {name: torch.stack([chain[name] for chain in chains]) for name in chains[0]}
