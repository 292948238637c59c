"""The linearised predictive distribution of a network at new inputs by pyro_scale."""

from __future__ import annotations

import time

import numpy as np
import torch
from networks import BATCH, classifier, make
from script import answer, parameters

import pyro_scale as ps

given = parameters()
torch.set_num_threads(1)
network, x, y = make(given["network"])
posterior = ps.infer(
    classifier(network),
    {"x": x[:BATCH], "y": y[:BATCH]},
    ps.kernels.DiagonalLaplace(optimizer=ps.kernels.MAP(step_size=1e-3)),
    num_samples=1,
    warmup_steps=0,
    initial={name: weights.detach() for name, weights in network.named_parameters()},
    seed=0,
    progress=False,
)
began = time.process_time()
predicted = posterior.predict({"x": x[: given["number"]]}, linearized=True, link="probit", keep_draws=False)
seconds = time.process_time() - began
np.save(given["draws"], predicted.mean["obs"].numpy())
answer(seconds=seconds)
