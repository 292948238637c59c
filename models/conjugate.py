"""Linear regression with a conjugate prior, whose posterior is known exactly."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from .measurements import pima_columns, standardised
from .problem import Moments, Problem

SHAPE, RATE = 2.0, 1.0
"""Of the inverse gamma prior of the noise variance."""


def conjugate_regression(x: Tensor, y: Tensor | None = None) -> None:
    """y on the columns of x with unknown noise variance; coefficients are normal with that same variance."""
    variance = pyro.sample("variance", dist.InverseGamma(SHAPE, RATE))
    sd = variance.sqrt()
    w = pyro.sample("w", dist.Normal(0.0, sd).expand([x.shape[-1]]).to_event(1))
    with pyro.plate("data", x.shape[0]):
        pyro.sample("obs", dist.Normal(x @ w, sd), obs=y)


def exact_posterior(x: Tensor, y: Tensor) -> dict[str, Moments]:
    """Moments of the normal inverse gamma posterior: Gelman et al., Bayesian Data Analysis (2013), section 14.2.

    Marginally the coefficients are multivariate t with 2 * shape degrees of freedom.
    """
    precision = x.T @ x + torch.eye(x.shape[1], dtype=x.dtype)
    mean = torch.linalg.solve(precision, x.T @ y)
    shape = SHAPE + len(y) / 2
    rate = RATE + (y @ y - mean @ precision @ mean) / 2
    noise = rate / (shape - 1)
    sd = (noise * torch.linalg.inv(precision).diagonal()).sqrt()
    return {"w": Moments(mean, sd), "variance": Moments(noise, noise / (shape - 2) ** 0.5)}


def body_mass() -> Problem:
    """Standardised body mass of 724 Pima women on age, pregnancies, glucose and blood pressure."""
    columns = pima_columns()
    measured = (columns["mass"] > 0) & (columns["glucose"] > 0) & (columns["pressure"] > 0)
    x = standardised([columns[name][measured] for name in ("age", "pregnant", "glucose", "pressure")])
    mass = columns["mass"][measured]
    y = (mass - mass.mean()) / mass.std()
    return Problem(
        name="body_mass",
        description="Pima Indians, body mass by conjugate linear regression; the reference is exact.",
        model=conjugate_regression,
        data={"x": x, "y": y},
        reference=exact_posterior(x, y),
    )
