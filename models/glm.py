"""Generalised linear models."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
from torch import Tensor

from .measurements import pima_columns, standardised
from .problem import Moments, Problem

_MEAN = [-0.86789, 0.41351, 1.12452, -0.25524, 0.00922, -0.13330, 0.70815, 0.31396, 0.17727]
_SD = [0.09661, 0.10781, 0.11779, 0.10083, 0.11004, 0.10374, 0.11813, 0.09883, 0.10931]


def logistic_regression(x: Tensor, y: Tensor | None = None) -> None:
    """Binary y on the columns of x, standard normal coefficients."""
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[-1]]).to_event(1))
    with pyro.plate("data", x.shape[0]):
        pyro.sample("obs", dist.Bernoulli(logits=x @ w), obs=y)


def pima() -> Problem:
    """Diabetes among 768 Pima women on an intercept and eight standardised measurements."""
    columns = pima_columns()
    y = columns.pop("diabetes")
    return Problem(
        name="pima",
        description="Pima Indians diabetes, logistic regression; reference from 100,000 draws of NUTS.",
        model=logistic_regression,
        data={"x": standardised(list(columns.values())), "y": y},
        reference={"w": Moments(y.new_tensor(_MEAN), y.new_tensor(_SD))},
    )
