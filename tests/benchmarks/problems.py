"""The Pyro models of the measurements, for ours and for the peers that run Pyro models."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
from torch import Tensor


def logistic_regression(x: Tensor, y: Tensor | None = None) -> None:
    """Binary y on the columns of x, standard normal coefficients: that of `pyro_scale.models.pima`."""
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[-1]]).to_event(1))
    with pyro.plate("data", x.shape[0]):
        pyro.sample("obs", dist.Bernoulli(logits=x @ w), obs=y)


def linear_regression(x: Tensor, y: Tensor | None = None) -> None:
    """y on the columns of x, wide priors, unknown noise."""
    w = pyro.sample("w", dist.Normal(0.0, 100.0).expand([x.shape[-1]]).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfCauchy(5.0))
    with pyro.plate("data", x.shape[0]):
        pyro.sample("obs", dist.Normal(x @ w, sigma), obs=y)


MODELS = {"logistic": logistic_regression, "linear": linear_regression}
