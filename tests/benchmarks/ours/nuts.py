"""`ps.diagnostics.nuts` on a Pyro model, one chain."""

from __future__ import annotations

import numpy as np
import torch
from problems import MODELS
from pyro_scale.diagnostics import nuts
from script import answer, parameters

from pyro_scale.posterior import Posterior

given = parameters()
torch.set_num_threads(1)
model, data = MODELS[given["model"]], dict(np.load(given["data"]))


def run(num_samples: int, warmup_steps: int) -> Posterior:
    settings = {"num_chains": 1, "sampler": given["sampler"], "seed": given["seed"], "progress": False}
    settings["jit_compile"] = True  # as a long run decides for itself
    return nuts(model, data, num_samples=num_samples, warmup_steps=warmup_steps, **settings)


run(2, 2)  # imports nutpie, which takes longer than its draws
posterior = run(given["num_samples"], given["warmup_steps"])
np.save(given["draws"], np.concatenate([np.atleast_3d(draws) for _, draws in sorted(posterior.draws.items())], -1))
seconds = posterior.timing["sample"]
answer(gradients_per_second=posterior.num_steps / seconds, seconds=seconds, timing=posterior.timing)
