"""Two samplers behind one signature: Pyro's NUTS and nutpie's, on a vector of coordinates."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from pyro.infer.mcmc import MCMC, NUTS
from torch import Tensor

from pyro_scale.capture import Recorded
from pyro_scale.choice import Choice, JitCompile
from pyro_scale.handlers import seeded
from pyro_scale.inlined import compiled_function
from pyro_scale.records import validation
from pyro_scale.starts import LinAlgError

Tick = Callable[[int], object]
"""Told how many iterations were done since the last call."""

NUTPIE = {"lp": "logp", "step_size": "step_size", "acceptance_rate": "mean_tree_accept", "diverging": "diverging"}
"""Names of statistics: ArviZ's, and nutpie's."""

POLL_SECONDS = 0.05
"""So often a chain that runs in another thread is asked how far it is."""


class Run(NamedTuple):
    """Draws of a chain, `(num_samples, d)`, and its statistics by ArviZ name, `(num_samples,)`."""

    draws: Tensor
    stats: dict[str, Tensor]


class Potential:
    """The log posterior of a vector and its gradient, counted, and compiled when that repays.

    Args:
        function: vector, fixed arguments -> (gradient, value). If it is `Recorded`, it can be compiled.
        example: a vector of the right length, type and device.
        fixed: arguments that are the same in every call.
        jit_compile: as `nuts` takes it.
    """

    def __init__(
        self,
        function: Callable[..., tuple[Tensor, Tensor]],
        example: Tensor,
        *fixed: Any,
        jit_compile: JitCompile = False,
    ) -> None:
        self.function = function
        self.example = example
        self.fixed = fixed
        self.calls = 0
        self.lock = threading.Lock()  # what traces a graph sees the calls of other threads, too
        if isinstance(function, Recorded):
            self.choice = Choice(jit_compile, function, "captured", what="Gradients")
        else:  # why it is not has been logged
            self.choice = Choice(False, None, "eager", what="Gradients")

    def expect(self, remaining: float) -> None:
        """Compiles now, if that repays with so many calls to go."""
        if self.choice.now(remaining):
            assert isinstance(self.function, Recorded)
            with self.lock:
                compiled = self.choice.compiled(partial(compiled_function, self.function, self.example, *self.fixed))
                self.function = compiled or self.function

    def evaluate(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient and value; minus infinity and a gradient of 0 where they are not finite, which NUTS rejects."""
        with self.lock:
            self.calls += 1
            began = time.perf_counter()
            try:
                gradient, value = self.function(vector, *self.fixed)
            except LinAlgError:  # a matrix of the model is not positive definite here
                gradient, value = torch.zeros_like(vector), vector.new_full((), torch.nan)
            self.choice.took(1, time.perf_counter() - began)
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
    # without checks of its own coin tosses, which take longer than a compiled gradient
    with seeded(seed, start.device), validation(False):
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
    """A chain of nutpie's NUTS, in a thread of its own; `tick` is called in the caller's, a few times a second."""
    import nutpie
    from nutpie.compiled_pyfunc import from_pyfunc

    example = potential.example
    size = len(example)
    iterations = 0

    def log_posterior(vector: np.ndarray) -> tuple[float, np.ndarray]:
        gradient, value = potential.evaluate(torch.from_numpy(vector.copy()).to(example))
        return float(value), gradient.double().cpu().numpy()

    def expand(vector: np.ndarray) -> dict[str, np.ndarray]:
        nonlocal iterations
        iterations += 1
        return {"z": np.asarray(vector, dtype=np.float64)}

    compiled = from_pyfunc(
        size,
        lambda: log_posterior,
        lambda seed1, seed2, chain: expand,
        [np.dtype(np.float64)],
        [(size,)],
        ["z"],
        make_initial_point_fn=lambda seed: start.double().cpu().numpy(),
    )
    sampler = nutpie.sample(
        compiled,
        draws=num_samples,
        tune=warmup_steps,
        chains=1,
        cores=1,
        seed=seed % 2**32,
        save_warmup=False,
        progress_bar=False,
        blocking=False,
    )
    result = _when_done(sampler, lambda: iterations, tick)
    stats = {name: torch.from_numpy(result.sample_stats[theirs].values[0].copy()) for name, theirs in NUTPIE.items()}
    return Run(torch.from_numpy(result.posterior["z"].values[0].copy()).to(example), stats)


def _when_done(sampler: Any, iterations: Callable[[], int], tick: Tick) -> Any:
    """The result of a sampler in another thread, which is told of in this one and stops with it."""
    told = 0
    try:
        while True:
            try:
                result = sampler.wait(timeout=POLL_SECONDS)
            except TimeoutError:
                result = None
            done = iterations()
            tick(done - told)
            told = done
            if result is not None:
                return result
    except BaseException:  # Ctrl-C too
        sampler.cancel()
        raise
