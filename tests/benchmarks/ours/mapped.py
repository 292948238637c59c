"""SGHMC of pyro_scale on the first rows of files mapped into memory: time of a step, and of the gather alone."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from networks import perceptron
from problems import logistic_regression
from script import answer, parameters
from torch import Tensor
from torch.func import functional_call

import pyro_scale as ps

ROUNDS, BATCHES = 20, 200

given = parameters()
torch.set_num_threads(1)
num_data, batch_size = given["num_data"], 256
data = {
    "x": np.memmap(given["x"], np.float32, "r", shape=(num_data, given["columns"])),
    "y": np.memmap(given["y"], np.float32, "r", shape=(num_data,)),
}


def network() -> tuple[Callable[..., None], dict[str, Tensor]]:
    """A network whose step takes more than a millisecond, and its first weights."""
    torch.manual_seed(0)
    layers = perceptron(given["columns"], 128, 128, 1)
    first = {name: weights.detach() for name, weights in layers.named_parameters()}

    def model(x: Tensor, y: Tensor | None = None) -> None:
        weights = {
            name: pyro.sample(name, dist.Normal(0.0, 1.0).expand(value.shape).to_event(value.ndim))
            for name, value in first.items()
        }
        logits = functional_call(layers, weights, (x,)).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Bernoulli(logits=logits), obs=y)

    return model, first


def gather_microseconds(*gathers: Callable[[Tensor], object]) -> list[float]:
    """Of random rows, by turns."""
    generator = torch.Generator().manual_seed(given["seed"])
    seconds = [0.0] * len(gathers)
    for _ in range(ROUNDS):
        for i, gather in enumerate(gathers):
            rows = torch.randint(num_data, (BATCHES, batch_size), generator=generator).unbind()
            began = time.perf_counter()
            for indices in rows:
                gather(indices)
            seconds[i] += time.perf_counter() - began
    return [each / (ROUNDS * BATCHES) * 1e6 for each in seconds]


model, initial = network() if given["network"] else (logistic_regression, None)
posterior = ps.infer(
    model,
    data,
    ps.kernels.SGHMC(step_size=1e-3),
    num_samples=1,
    warmup_steps=given["num_steps"],
    num_chains=1,
    batch_size=batch_size,
    initial=initial,
    seed=given["seed"],
    progress=False,
    jit_compile=True,
)
compiled = ps.compile_model(logistic_regression, data, batch_size=batch_size)
x, y = compiled.data.rows["x"], compiled.data.rows["y"]
ours, plain = gather_microseconds(compiled.gathered, lambda indices: (x[indices], y[indices]))
answer(
    step_microseconds=posterior.timing["sample"] / posterior.num_steps * 1e6,
    gather_microseconds=ours,
    plain_microseconds=plain,
    timing=posterior.timing,
    how=posterior.settings["steps_run"],
)
