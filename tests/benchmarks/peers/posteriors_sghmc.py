"""SGHMC of posteriors on a Pyro model, as it documents: a log posterior per datum, temperature 1 / N.

The minibatches are drawn by plain indexing, which is quicker than a DataLoader; Pyro's validation is off.
"""

from __future__ import annotations

import time

import numpy as np
import posteriors
import pyro
import torch
from problems import logistic_regression
from pyro import poutine
from script import answer, parameters
from torch import Tensor

given = parameters()
torch.set_num_threads(1)
torch.manual_seed(given["seed"])
pyro.enable_validation(False)

data = np.load(given["data"])
x, y = torch.from_numpy(data["x"]), torch.from_numpy(data["y"])
num_data, batch_size = len(x), given["batch_size"]


def log_posterior(params: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    trace = poutine.trace(poutine.condition(logistic_regression, data=params)).get_trace(*batch)
    trace.compute_log_prob()
    prior, likelihood = (trace.nodes[name]["log_prob_sum"] for name in ("w", "obs"))
    return prior / num_data + likelihood / len(batch[0]), torch.tensor([])


transform = posteriors.sgmcmc.sghmc.build(
    log_posterior, lr=given["step_size"], alpha=given["friction"], temperature=1 / num_data, momenta=0.0
)
chains, seconds = [], 0.0
for _ in range(given["num_chains"]):
    state = transform.init({"w": torch.tensor(given["initial"])})
    began, draws = time.perf_counter(), []
    num_steps = given["warmup_steps"] + given["num_samples"] * given["thinning"]
    for step in range(1, num_steps + 1):
        rows = torch.randint(num_data, (batch_size,))
        state, _ = transform.update(state, (x[rows], y[rows]))
        if step > given["warmup_steps"] and (step - given["warmup_steps"]) % given["thinning"] == 0:
            draws.append(state.params["w"])
    seconds += time.perf_counter() - began
    chains.append(torch.stack(draws))
np.save(given["draws"], torch.stack(chains).numpy())
answer(step_microseconds=seconds / num_steps / given["num_chains"] * 1e6)
