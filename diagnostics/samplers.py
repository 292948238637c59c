"""Two samplers behind one signature: Pyro's NUTS and nutpie's, on a vector of coordinates."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from pyro.infer.mcmc import MCMC, NUTS
from torch import Tensor

from pyro_scale.handlers import seeded
from pyro_scale.starts import LinAlgError

Tick = Callable[[int], object]
"""Told how many iterations were done since the last call."""

NUTPIE = {"lp": "logp", "step_size": "step_size", "acceptance_rate": "mean_tree_accept", "diverging": "diverging"}
"""Names of statistics: ArviZ's, and nutpie's."""


class Run(NamedTuple):
    """Draws of a chain, `(num_samples, d)`, and its statistics by ArviZ name, `(num_samples,)`."""

    draws: Tensor
    stats: dict[str, Tensor]


class Potential:
    """The log posterior of a vector and its gradient, counted.

    Args:
        function: vector -> (gradient, value).
        example: a vector of the right length, type and device.
    """

    def __init__(self, function: Callable[[Tensor], tuple[Tensor, Tensor]], example: Tensor) -> None:
        self.function = function
        self.example = example
        self.calls = 0

    def evaluate(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient and value; minus infinity and a gradient of 0 where they are not finite, which NUTS rejects."""
        self.calls += 1
        try:
            gradient, value = self.function(vector)
        except LinAlgError:  # a matrix of the model is not positive definite here
            gradient, value = torch.zeros_like(vector), vector.new_full((), torch.nan)
        if math.isfinite(float(value)) and math.isfinite(float(gradient.sum())):
            return gradient, value
        return torch.zeros_like(gradient), torch.full_like(value, -torch.inf)


class _Energy(torch.autograd.Function):
    """Minus the log posterior with the gradient that came with it, so that autograd records nothing else."""

    @staticmethod
    def forward(ctx: Any, vector: Tensor, potential: Potential) -> Tensor:
        gradient, value = potential.evaluate(vector.detach())
        ctx.save_for_backward(gradient)
        return -value

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return -upstream * gradient, None


def pyro_chain(potential: Potential, start: Tensor, seed: int, num_samples: int, warmup_steps: int, tick: Tick) -> Run:
    """A chain of Pyro's NUTS; `tick` is called after every iteration."""
    energy: Any = _Energy.apply
    kernel = NUTS(potential_fn=lambda values: energy(values["z"], potential))
    rows: list[tuple[float, float, float, int]] = []

    def hook(kernel: Any, samples: Any, stage: str, i: int) -> None:
        lp, accepted = -float(kernel._potential_energy_last), kernel._mean_accept_prob
        rows.append((lp, float(kernel.step_size), accepted, len(kernel._divergences)))
        tick(1)

    mcmc = MCMC(
        kernel,
        num_samples=num_samples,
        warmup_steps=warmup_steps,
        initial_params={"z": start},
        hook_fn=hook,
        disable_progbar=True,
    )
    with seeded(seed, start.device):
        mcmc.run()
    lp, step_size, running_mean, divergences = torch.tensor(rows[-num_samples:], dtype=torch.float64).T
    stats = {
        "lp": lp,
        "step_size": step_size,
        "acceptance_rate": _increments(running_mean * torch.arange(1, num_samples + 1)).clamp(0, 1),
        "diverging": _increments(divergences) > 0,
    }
    return Run(mcmc.get_samples()["z"], stats)


def _increments(totals: Tensor) -> Tensor:
    return torch.diff(totals, prepend=torch.zeros(1, dtype=totals.dtype))


def nutpie_chain(
    potential: Potential, start: Tensor, seed: int, num_samples: int, warmup_steps: int, tick: Tick
) -> Run:
    """A chain of nutpie's NUTS, through its interface for Python functions; `tick` is called at its end."""
    import nutpie
    from nutpie.compiled_pyfunc import from_pyfunc

    example = potential.example
    size = len(example)

    def log_posterior(vector: np.ndarray) -> tuple[float, np.ndarray]:
        gradient, value = potential.evaluate(torch.from_numpy(vector.copy()).to(example))
        return float(value), gradient.double().cpu().numpy()

    compiled = from_pyfunc(
        size,
        lambda: log_posterior,
        lambda seed1, seed2, chain: lambda vector: {"z": np.asarray(vector, dtype=np.float64)},
        [np.dtype(np.float64)],
        [(size,)],
        ["z"],
        make_initial_point_fn=lambda seed: start.double().cpu().numpy(),
    )
    result = nutpie.sample(
        compiled,
        draws=num_samples,
        tune=warmup_steps,
        chains=1,
        cores=1,
        seed=seed % 2**32,
        save_warmup=False,
        progress_bar=False,
    )
    tick(num_samples + warmup_steps)
    stats = {name: torch.from_numpy(result.sample_stats[theirs].values[0].copy()) for name, theirs in NUTPIE.items()}
    return Run(torch.from_numpy(result.posterior["z"].values[0].copy()).to(example), stats)
