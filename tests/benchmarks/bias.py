"""Measures how far kernels' draws are from an exact posterior, beside what is predicted, and writes BIAS.md.

`make bias` runs it. The posterior is that of a linear regression with known noise: normal, its moments exact.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from bias_table import Cell, Table, document
from torch import Tensor
from torch.utils import _pytree as pytree

import pyro_scale as ps
from pyro_scale.bias import predicted_bias
from pyro_scale.collected import Plan
from pyro_scale.gradient import Frame, anchor_at
from pyro_scale.hessian import row_blocks
from pyro_scale.kernels import BAOAB, SGHMC, SGLD, SGNHT
from pyro_scale.law import law_of
from pyro_scale.sample import run_chains

NUM_DATA, NUM_COVARIATES, NUM_CHAINS = 1000, 5, 1500
KERNELS: dict[str, tuple[Any, tuple[float, ...]]] = {
    "sgld": (SGLD, (0.02, 0.06, 0.2, 0.6)),
    "sghmc": (SGHMC, (0.05, 0.15, 0.4, 0.9)),
    "baoab": (BAOAB, (0.05, 0.15, 0.4, 0.9)),
    "sgnht": (SGNHT, (0.05, 0.15, 0.4, 0.9)),
}
BATCHES = [(1, False), (1, True), (16, False), (16, True), (64, False), (64, True), (NUM_DATA, False)]
"""Rows of a minibatch, and whether it has control variates."""
BURN_IN, LENGTH, LEAST_STEPS = 4, 8, 200
"""Autocorrelation times before and after the first draw, and steps that each takes at least with minibatches."""
DRAWS = 32
"""Kept of a chain."""
ROUNDS = 12


class Problem(NamedTuple):
    """A linear regression with noise of sd 1, coefficients of prior N(0, 1), and its posterior.

    Attributes:
        x, y: the rows.
        mean: of the posterior, `(d,)`.
        curvature: negative Hessian of the log posterior, per datum, `(d, d)`.
    """

    x: Tensor
    y: Tensor
    mean: Tensor
    curvature: Tensor

    def gradient_noise(self, variances: Tensor, batch_size: int, anchored: bool) -> Tensor:
        """Covariance of the gradient per datum over minibatches, averaged over a normal around the posterior's mean.

        Args:
            variances: of that normal along the eigenvectors of the curvature.
            batch_size: rows of a minibatch, which holds none twice.
            anchored: whether control variates take out the noise at the mean.
        """
        vectors = torch.linalg.eigh(self.curvature)[1]
        squares = (self.x @ (vectors * variances.sqrt())).square().sum(1)  # of what the predictions of a row miss
        if not anchored:
            squares = squares + (self.y - self.x @ self.mean).square()
        each = (self.x * squares[:, None]).T @ self.x / NUM_DATA
        common = self.x.T @ self.x / NUM_DATA @ (vectors * variances) @ vectors.T @ self.x.T @ self.x / NUM_DATA
        return (each - common) / batch_size * (NUM_DATA - batch_size) / (NUM_DATA - 1)


def regression() -> Problem:
    """Covariates of variance 1 and correlation 0.3."""
    generator = torch.Generator().manual_seed(0)
    correlations = torch.full((NUM_COVARIATES, NUM_COVARIATES), 0.3, dtype=torch.float64).fill_diagonal_(1)
    normal = torch.randn(NUM_DATA, NUM_COVARIATES + 1, generator=generator, dtype=torch.float64)
    x = normal[:, 1:] @ torch.linalg.cholesky(correlations).T
    y = x @ torch.linspace(-1, 1, NUM_COVARIATES, dtype=torch.float64) + normal[:, 0]
    precision = x.T @ x + torch.eye(NUM_COVARIATES, dtype=torch.float64)
    return Problem(x, y, torch.linalg.solve(precision, x.T @ y), precision / NUM_DATA)


def model(x: Tensor, y: Tensor) -> None:
    """The regression, for `ps.infer`."""
    w = pyro.sample("w", dist.Normal(torch.zeros(NUM_COVARIATES).to(x), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.Normal(x @ w, 1.0), obs=y)


def predicted(problem: Problem, kernel: Any, batch_size: int, anchored: bool) -> Tensor:
    """Relative errors of the sds along the eigenvectors of the curvature.

    The gradient's noise grows with the distance from the mean, and the distance with the noise: a fixed point, which
    iterations approach as a geometric series does; where they do not, there is no stationary variance.
    """
    unit = 1 / (NUM_DATA * torch.linalg.eigvalsh(problem.curvature))
    ratios, before = torch.ones_like(unit), math.inf
    for _ in range(ROUNDS):
        noise = problem.gradient_noise(unit * ratios, batch_size, anchored)
        bias = predicted_bias(kernel, problem.curvature, noise, NUM_DATA, NUM_DATA / batch_size)
        after = (1 + bias.step_size + bias.minibatches).square()
        change = float((after - ratios).norm())
        if not change < math.inf:
            return torch.full_like(unit, torch.inf)
        shrinks, last = change / before, ratios
        ratios, before = after, change
        if change < 1e-4:
            break
    if shrinks >= 1:
        return torch.full_like(unit, torch.inf)
    return (ratios + (ratios - last) * shrinks / (1 - shrinks)).sqrt() - 1


def autocorrelation_time(problem: Problem, kernel: Any, batch_size: int, anchored: bool) -> float:
    """Steps, in the slowest direction; a thermostat slows by the friction that it adds for small steps."""
    values = torch.linalg.eigvalsh(problem.curvature)
    if isinstance(kernel, SGNHT):
        noise = problem.gradient_noise(1 / (NUM_DATA * values), batch_size, anchored).diagonal().mean() * NUM_DATA
        friction = kernel.friction + kernel.step_size / 2 * float(noise)
        kernel = replace(kernel, friction=min(friction, 2 / kernel.step_size))
    return law_of(kernel, kernel.step_size, float(values[0])).autocorrelation_time


def drawn(problem: Problem, kernel: Any, batch_size: int, anchored: bool, num_chains: int, seed: int) -> Tensor | None:
    """Draws of chains that started in the posterior, `(num_chains, draws, d)`; None if they diverged.

    In posterior sds along the eigenvectors of the curvature.
    """
    values, vectors = torch.linalg.eigh(problem.curvature)
    scale = (NUM_DATA * values).sqrt()
    whole = batch_size == NUM_DATA
    data = {"x": problem.x, "y": problem.y}
    compiled = ps.compile_model(model, data, batch_size=None if whole else batch_size)
    normal = torch.randn(num_chains, len(values), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    start = {"w": problem.mean + (normal / scale) @ vectors.T}
    frame = Frame()
    if anchored:
        anchor = anchor_at(compiled, row_blocks(compiled), {"w": problem.mean})
        frame = Frame(None, pytree.tree_map(lambda leaf: leaf.expand(num_chains, *leaf.shape).clone(), anchor))
    memory, least = autocorrelation_time(problem, kernel, batch_size, anchored), 0 if whole else LEAST_STEPS
    burn_in, length = (max(least, math.ceil(times * memory)) for times in (BURN_IN, LENGTH))
    plan = Plan(DRAWS, burn_in, math.ceil(length / DRAWS), num_chains, ("w",))
    seeds = (seed + 1, seed + 2)
    how: Any = True if whole else "auto"  # compilation always repays where a step takes milliseconds
    chains = run_chains(compiled, kernel, plan, start, seeds, jit_compile=how, frame=frame)
    if chains.ending is not None:
        return None
    return (chains.draws["w"] - problem.mean) @ vectors * scale


def measured(
    problem: Problem, kernel: Any, batch_size: int, anchored: bool, num_chains: int = NUM_CHAINS, seed: int = 0
) -> Cell:
    """Predicts, runs and compares."""
    errors = predicted(problem, kernel, batch_size, anchored)
    draws = drawn(problem, kernel, batch_size, anchored, num_chains, seed)
    worst = int(errors.abs().argmax())
    if draws is None:
        return Cell(float(errors[worst]), math.nan, math.nan, math.nan, math.nan, 0)
    squares, means = draws[..., worst].square().mean(1), draws.mean(1)
    sd = float(squares.mean().sqrt())
    found, error = means.mean(0), means.std(0) / math.sqrt(num_chains)
    farthest = int((found / error).abs().argmax())
    return Cell(
        predicted=float(errors[worst]),
        actual=sd - 1,
        standard_error=float(squares.std()) / math.sqrt(num_chains) / (2 * sd),
        mean_error=float(found[farthest]),
        mean_standard_error=float(error[farthest]),
        num_means=len(found),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(KERNELS), help="some of the kernels; writes no file")
    parser.add_argument("--quick", action="store_true", help="few chains, which say nothing; writes no file")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    began, problem, seeds, found = time.perf_counter(), regression(), itertools.count(0, 100), dict[str, Table]()
    number = 20 if chosen.quick else NUM_CHAINS
    for name in chosen.only or KERNELS:
        found[name] = {}
        for step_size, (batch_size, anchored) in itertools.product(KERNELS[name][1], BATCHES):
            kernel = KERNELS[name][0](step_size=step_size)
            cell = measured(problem, kernel, batch_size, anchored, number, next(seeds))
            found[name][batch_name(batch_size, anchored), step_size] = cell
            print(name, step_size, batch_name(batch_size, anchored), cell, flush=True)
    text = document(found, (time.perf_counter() - began) / 60, about(number))
    print(text)
    if not chosen.only and not chosen.quick:
        Path(__file__).with_name("BIAS.md").write_text(text, encoding="utf-8")


def about(num_chains: int) -> str:
    """What is measured, in words."""
    return (
        "How far standard deviations of draws are from those of a posterior that is known exactly: a linear regression "
        f"of {NUM_DATA} rows on {NUM_COVARIATES} correlated covariates, with noise of known variance. Kernels run as "
        "configured, without tuning, with friction 1 (and a thermostat of rate 1), on minibatches without replacement; "
        f"control variates have their anchor at the posterior's mean. {num_chains} chains start in the posterior, and "
        f"give {DRAWS} draws each. Predictions are those of `pyro_scale.bias.predicted_bias`; the variance of "
        "minibatches is computed from the rows, at the spread that draws have with it. `psgld` is left out: its "
        "preconditioner is another in every chain, as its warm-up went."
    )


def batch_name(batch_size: int, anchored: bool) -> str:
    """In words."""
    return f"{batch_size}, control variates" if anchored else "all" if batch_size == NUM_DATA else str(batch_size)


if __name__ == "__main__":
    main()
