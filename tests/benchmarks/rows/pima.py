"""What the rows on Pima share: its data for the scripts, its reference, and the settings of SGHMC."""

from __future__ import annotations

from typing import Any

import numpy as np
from agreement import disagreement, pooled
from measure import Answers, Bench
from pyro_scale.models import pima

# sds are 4 % too wide at most: with less friction the textbook order of the peers, position first, widens them by 12 %
SETTINGS = {"step_size": 0.05, "friction": 1.0, "batch_size": 32, "thinning": 10, "initial": [0.0] * 9}


def parameters(bench: Bench, name: str, **settings: Any) -> dict[str, Any]:
    """What a script on Pima is told; `name` keeps its draws apart. The data are float32, JAX's default type."""
    path = bench.work / "pima.npz"
    if not path.exists():
        np.savez(path, **{key: value.float().numpy() for key, value in pima().data.items()})
    return {"data": str(path), "draws": str(bench.work / name), "seed": 0, **SETTINGS, **settings}


def wrong(name: str, answers: Answers) -> str | None:
    """How the draws differ from the reference of 100,000 draws of NUTS; None where they do not."""
    mean, sd = pima().reference["w"]
    return disagreement(name, pooled(answers), mean.numpy(), sd.numpy())
