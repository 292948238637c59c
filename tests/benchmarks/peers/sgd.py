"""`torch.optim.SGD` with momentum on a network: time of a step, and memory above what was held before."""

from __future__ import annotations

import time

import memory
import torch
from networks import make
from script import answer, parameters
from torch.nn.functional import cross_entropy


def run(name: str, num_steps: int) -> dict[str, float]:
    network, x, y = make(name)
    optimiser = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)

    def steps(number: int) -> None:
        for _ in range(number):
            rows = torch.randint(len(x), (128,))
            optimiser.zero_grad()
            cross_entropy(network(x[rows]), y[rows]).backward()
            optimiser.step()

    before = memory.held()
    steps(5)
    began = time.perf_counter()
    steps(num_steps)
    seconds = time.perf_counter() - began
    weights = sum(parameter.nbytes for parameter in network.parameters())
    return {
        "step_milliseconds": seconds / num_steps * 1e3,
        "bytes_taken": memory.peak() - before,
        "bytes_of_weights": weights,
    }


given = parameters()
torch.set_num_threads(1)
run("tiny", 2)
answer(**run(given["network"], given["num_steps"]))
