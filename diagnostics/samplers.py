"""Two samplers behind one signature: Pyro's NUTS and nutpie's, on a vector of coordinates."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from pyro.infer.mcmc import MCMC, NUTS
from torch import Tensor

from pyro_scale.handlers import seeded
from pyro_scale.starts import LinAlgError


class Run(NamedTuple):
    """Draws `(num_chains, num_samples, d)` and, by ArviZ name, statistics `(num_chains, num_samples)`."""

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


def sample_pyro(
    potential: Potential, starts: Sequence[Tensor], num_samples: int, warmup_steps: int, seeds: Sequence[int]
) -> Run:
    """Pyro's NUTS, one chain after another."""
    chains = [_pyro_chain(potential, *pair, num_samples, warmup_steps) for pair in zip(starts, seeds, strict=True)]
    stats = {name: torch.stack([chain.stats[name] for chain in chains]) for name in chains[0].stats}
    return Run(torch.stack([chain.draws for chain in chains]), stats)


def _pyro_chain(potential: Potential, start: Tensor, seed: int, num_samples: int, warmup_steps: int) -> Run:
    energy: Any = _Energy.apply
    kernel = NUTS(potential_fn=lambda values: energy(values["z"], potential))
    rows: list[tuple[float, float, float, int]] = []

    def hook(kernel: Any, samples: Any, stage: str, i: int) -> None:
        lp, accepted = -float(kernel._potential_energy_last), kernel._mean_accept_prob
        rows.append((lp, float(kernel.step_size), accepted, len(kernel._divergences)))

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


def sample_nutpie(
    potential: Potential, starts: Sequence[Tensor], num_samples: int, warmup_steps: int, seeds: Sequence[int]
) -> Run:
    """nutpie's NUTS, through its interface for Python functions; chain after chain, since Python holds the lock."""
    import nutpie
    from nutpie.compiled_pyfunc import from_pyfunc

    example = potential.example
    size = len(example)

    def log_posterior(vector: np.ndarray) -> tuple[float, np.ndarray]:
        gradient, value = potential.evaluate(torch.from_numpy(vector.copy()).to(example))
        return float(value), gradient.double().cpu().numpy()

    parts = []
    for start, seed in zip(starts, seeds, strict=True):
        compiled = from_pyfunc(
            size,
            lambda: log_posterior,
            lambda seed1, seed2, chain: lambda vector: {"z": np.asarray(vector, dtype=np.float64)},
            [np.dtype(np.float64)],
            [(size,)],
            ["z"],
            make_initial_point_fn=lambda seed, start=start: start.double().cpu().numpy(),
        )
        parts.append(
            nutpie.sample(
                compiled,
                draws=num_samples,
                tune=warmup_steps,
                chains=1,
                cores=1,
                seed=seed % 2**32,
                save_warmup=False,
                progress_bar=False,
            )
        )
    draws = torch.cat([torch.from_numpy(part.posterior["z"].values.copy()) for part in parts])
    names = {"lp": "logp", "step_size": "step_size", "acceptance_rate": "mean_tree_accept", "diverging": "diverging"}
    stats = {
        name: torch.cat([torch.from_numpy(part.sample_stats[theirs].values.copy()) for part in parts])
        for name, theirs in names.items()
    }
    return Run(draws.to(example), stats)
