"""SGHMC of pyro_scale on a Pyro model."""

from __future__ import annotations

import time

import numpy as np
import torch
from problems import logistic_regression
from script import answer, parameters

import pyro_scale as ps

import_seconds = time.process_time()  # of the CPU since the process began
given = parameters()
data = np.load(given["data"])
posterior = ps.infer(
    logistic_regression,
    {"x": data["x"], "y": data["y"]},
    ps.kernels.SGHMC(step_size=given["step_size"], friction=given["friction"]),
    num_samples=given["num_samples"],
    warmup_steps=given["warmup_steps"],
    thinning=given["thinning"],
    num_chains=given["num_chains"],
    batch_size=given["batch_size"],
    initial=None if given["initial"] is None else {"w": torch.tensor(given["initial"])},
    seed=given["seed"],
    progress=False,
    jit_compile=True,
)
np.save(given["draws"], posterior.draws["w"].numpy())
answer(
    step_microseconds=posterior.timing["sample"] / posterior.num_steps * 1e6,
    import_seconds=import_seconds,
    timing=posterior.timing,
    how=posterior.settings["steps_run"],
)
