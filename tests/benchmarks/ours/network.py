"""A method of pyro_scale on the Pyro model of a network: time of a step, and memory above what was held before."""

from __future__ import annotations

import time
from typing import Any

import memory
import torch
from networks import BATCH, classifier, make
from script import answer, parameters

import pyro_scale as ps

KERNELS = {"sghmc": ps.kernels.SGHMC(step_size=1e-3), "vi_diag": ps.kernels.DiagonalVI(step_size=1e-3)}


def run(name: str, method: str, num_steps: int) -> dict[str, object]:
    """Time and memory of a run that keeps the draws of the last bias alone."""
    network, x, y = make(name)
    initial = {name: weights.detach() for name, weights in network.named_parameters()}
    before = memory.held()
    peaks: list[int] = []
    clock: list[tuple[int, float, float]] = []

    def callback(progress: Any) -> None:
        clock.append((progress.step, time.process_time(), time.thread_time()))
        if not peaks:  # the first step is done: what the model's runs and the capture took is past
            peaks.append(memory.peak())
            memory.held()

    posterior = ps.infer(
        classifier(network),
        {"x": x, "y": y},
        KERNELS[method],
        num_samples=1,
        warmup_steps=num_steps,
        num_chains=1,
        batch_size=BATCH,
        initial=initial,
        keep=[list(initial)[-1]],
        seed=0,
        progress=False,
        jit_compile=True,
        callback=callback,
    )
    num_steps, processor, thread = (after - before for before, after in zip(clock[0], clock[-1], strict=True))
    return {
        "step_milliseconds": posterior.timing["sample"] / posterior.num_steps * 1e3,
        "processor_milliseconds": processor / max(1, num_steps) * 1e3,
        "thread_milliseconds": thread / max(1, num_steps) * 1e3,  # without the noise, which a second one draws
        "bytes_taken": max(*peaks, memory.peak()) - before,
        "bytes_of_steps": memory.peak() - before,
        "timing": posterior.timing,
        "how": posterior.settings["steps_run"],
    }


given = parameters()
torch.set_num_threads(1)
run("tiny", given["method"], 2)
answer(**run(given["network"], given["method"], given["num_steps"]))
