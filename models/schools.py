"""Coaching in eight schools: the smallest hierarchical model (Rubin, 1981)."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from .problem import Moments, Problem

_REFERENCE: dict[str, tuple[float | list[float], float | list[float]]] = {
    "mu": (4.4, 3.3),
}


def schools_noncentered(sigma: Tensor, y: Tensor | None = None) -> None:
    """Effects theta = mu + tau * theta_trans of each school, observed with known standard errors sigma."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", sigma.shape[0]):
        theta_trans = pyro.sample("theta_trans", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * theta_trans)
        pyro.sample("obs", dist.Normal(theta, sigma), obs=y)


def eight_schools() -> Problem:
    """The eight schools in the non-centred parametrisation; full batch, since every school has an effect of its own."""
    return Problem(
        name="eight_schools",
        description="Eight schools, non-centred; reference from 100,000 draws of NUTS.",
        model=schools_noncentered,
        data={
            "sigma": torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18], dtype=torch.float64),
            "y": torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12], dtype=torch.float64),
        },
        reference={name: Moments(torch.tensor(mean), torch.tensor(sd)) for name, (mean, sd) in _REFERENCE.items()},
    )
