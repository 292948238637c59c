"""Saved runs for the tests beside this file, which read them without torch: `python saved_runs.py FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch

import pyro_scale as ps


def model(x: torch.Tensor, y: torch.Tensor | None = None) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[-1]]).to_event(1))
    sigma = pyro.sample("scope/sigma", dist.HalfNormal(1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.Normal(x @ w, sigma), obs=y)


def write(folder: Path) -> None:
    """SGHMC with superchains from minibatches, a run too short to be right, and NUTS, each as `<name>.nc`."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(100, 2, generator=generator)
    data = {"x": x, "y": x @ torch.tensor([1.0, -0.5]) + 0.5 * torch.randn(100, generator=generator)}
    shared = {"seed": 0, "progress": False, "jit_compile": False}
    kernel = ps.kernels.SGHMC(step_size=0.1, friction=1.0)
    runs = {
        "long": ps.infer(
            model, data, kernel, batch_size=50, num_samples=200, thinning=10, warmup_steps=200, num_chains=4,
            num_superchains=2, **shared
        ),
        "short": ps.infer(model, data, kernel, num_samples=30, thinning=1, warmup_steps=0, num_chains=2, **shared),
        "nuts": ps.diagnostics.nuts(model, data, num_samples=50, warmup_steps=50, num_chains=2, **shared),
    }  # fmt: skip
    for name, run in runs.items():
        run.save(folder / f"{name}.nc")


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    write(target)
