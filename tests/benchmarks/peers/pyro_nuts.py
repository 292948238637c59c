"""NUTS of Pyro as it comes, one chain; gradients are counted where its integrator asks for them."""

from __future__ import annotations

import time

import numpy as np
import pyro
import torch
from problems import MODELS
from pyro.infer import MCMC, NUTS
from pyro.ops import integrator
from script import answer, parameters

given = parameters()
torch.set_num_threads(1)
pyro.set_rng_seed(given["seed"])
pyro.enable_validation(False)
data = {name: torch.from_numpy(value) for name, value in np.load(given["data"]).items()}
torch.set_default_dtype(data["x"].dtype)

calls = 0
potential_grad = integrator.potential_grad


def counted(*arguments):
    global calls
    calls += 1
    return potential_grad(*arguments)


integrator.potential_grad = counted
mcmc = MCMC(
    NUTS(MODELS[given["model"]]),
    num_samples=given["num_samples"],
    warmup_steps=given["warmup_steps"],
    disable_progbar=True,
    initial_params={name: torch.tensor(value) for name, value in given["initial"].items()} or None,
)
began = time.perf_counter()
mcmc.run(**data)
seconds = time.perf_counter() - began
draws = mcmc.get_samples(group_by_chain=True)
np.save(given["draws"], np.concatenate([np.atleast_3d(value) for _, value in sorted(draws.items())], -1))
answer(gradients_per_second=calls / seconds, seconds=seconds, gradients=calls)
