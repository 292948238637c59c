"""NUTS of NumPyro on logistic regression, one chain."""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS, init_to_value
from script import answer, parameters

given = parameters()
data = {name: jnp.asarray(value) for name, value in np.load(given["data"]).items()}


def logistic_regression(x, y):
    w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[-1]]).to_event(1))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("obs", dist.Bernoulli(logits=x @ w), obs=y)


start = {name: jnp.asarray(value) for name, value in given["initial"].items()}
mcmc = MCMC(
    NUTS(logistic_regression, init_strategy=init_to_value(values=start)),
    num_samples=given["num_samples"],
    num_warmup=given["warmup_steps"],
    progress_bar=False,
)
began = time.perf_counter()
mcmc.run(jax.random.key(given["seed"]), extra_fields=("num_steps",), **data)
draws = np.asarray(mcmc.get_samples()["w"])
seconds = time.perf_counter() - began
np.save(given["draws"], draws[None])
answer(seconds=seconds, gradients_an_iteration=float(mcmc.get_extra_fields()["num_steps"].mean()))
