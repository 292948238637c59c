"""Laplace's approximation of a large network by pyro_scale: the most memory that the process held, and its time."""

from __future__ import annotations

import time

import memory
import torch
from networks import classifier, make
from script import answer, parameters

import pyro_scale as ps

KERNELS = {"diagonal": ps.kernels.DiagonalLaplace, "Kronecker": ps.kernels.KroneckerLaplace}

given = parameters()
torch.set_num_threads(1)
network, x, y = make(given["network"])
x, y = x[: given["num_data"]].clone(), y[: given["num_data"]]
initial = {name: weights.detach() for name, weights in network.named_parameters()}
memory.held()
began = time.perf_counter()
posterior = ps.infer(
    classifier(network),
    {"x": x, "y": y},
    KERNELS[given["structure"]](optimizer=ps.kernels.MAP(step_size=1e-3)),
    num_samples=1,
    warmup_steps=0,
    batch_size=32,
    initial=initial,
    seed=0,
    progress=False,
)
assert posterior.approximation is not None
answer(
    bytes_held=memory.peak(),
    seconds=time.perf_counter() - began,
    num_weights=sum(weights.numel() for weights in initial.values()),
    finite=bool(posterior.approximation.log_det.isfinite()),
)
