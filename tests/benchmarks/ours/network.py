"""SGHMC of pyro_scale on the Pyro model of a network: time of a step, and memory above what was held before."""

from __future__ import annotations

import memory
import torch
from networks import classifier, make
from script import answer, parameters

import pyro_scale as ps


def run(name: str, num_steps: int) -> dict[str, object]:
    """Time and memory of a run that keeps the draws of the last bias alone."""
    network, x, y = make(name)
    initial = {name: weights.detach() for name, weights in network.named_parameters()}
    before = memory.held()
    peaks: list[int] = []

    def callback(progress: object) -> None:
        if not peaks:  # the first step is done: what the model's runs and the capture took is past
            peaks.append(memory.peak())
            memory.held()

    posterior = ps.infer(
        classifier(network),
        {"x": x, "y": y},
        ps.kernels.SGHMC(step_size=1e-3),
        num_samples=1,
        warmup_steps=num_steps,
        thinning=1,
        num_chains=1,
        batch_size=128,
        initial=initial,
        keep=[list(initial)[-1]],
        seed=0,
        progress=False,
        jit_compile=True,
        callback=callback,
    )
    return {
        "step_milliseconds": posterior.timing["sample"] / posterior.num_steps * 1e3,
        "bytes_taken": max(*peaks, memory.peak()) - before,
        "bytes_of_steps": memory.peak() - before,
        "timing": posterior.timing,
        "how": posterior.settings["steps_run"],
    }


given = parameters()
torch.set_num_threads(1)
run("tiny", 2)
answer(**run(given["network"], given["num_steps"]))
