"""Thousands of short chains, of each its last draw: a deep ensemble at temperature 0, posterior draws at 1."""

from __future__ import annotations

from typing import Any

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from small_models import known_variance, numbers
from torch import Tensor

import pyro_scale as ps
from pyro_scale.compile import compile_model
from pyro_scale.inputs import Inputs
from pyro_scale.kernels import SGHMC
from pyro_scale.posterior import Posterior

NUM_CHAINS = 2000
NUM_ROWS, BATCH, STEPS = 40, 8, 25
X = numbers(NUM_ROWS, 3, seed=1)
LABELS = (numbers(NUM_ROWS, seed=2) + X[:, 0] > 0).long()
Y = numbers(200, seed=3) + 1


def network(x: Tensor, y: Tensor | None = None) -> None:
    """One hidden layer of four units."""
    hidden = pyro.sample("hidden", dist.Normal(0.0, 1.0).expand([3, 4]).to_event(2))
    output = pyro.sample("output", dist.Normal(0.0, 1.0).expand([4]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.Bernoulli(logits=(x @ hidden).tanh() @ output), obs=y)


def loss(weights: dict[str, Tensor], rows: Tensor) -> Tensor:
    """Cross-entropy of a row and weight decay, as deep learning has them: minus the log posterior divided by N."""
    logits = (X[rows] @ weights["hidden"]).tanh() @ weights["output"]
    decay = sum((leaf**2).sum() for leaf in weights.values()) / 2
    return torch.nn.functional.binary_cross_entropy_with_logits(logits, LABELS[rows].double()) + decay / NUM_ROWS


def test_at_temperature_0_every_chain_is_stochastic_gradient_descent_from_its_own_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Momentum and learning rate as the kernel's settings say, on the minibatches of the run, by torch's optimiser."""
    seen: dict[str, Any] = {}
    draw = Inputs.draw

    def watched(self: Inputs, start: int) -> Any:
        chunk = draw(self, start)
        seen.setdefault("rows", chunk.indices)
        return chunk

    monkeypatch.setattr(Inputs, "draw", watched)
    run: dict[str, Any] = {"num_chains": 6, "num_samples": 1, "batch_size": BATCH, "initial": "prior", "seed": 0}
    data = {"x": X, "y": LABELS}
    kernel = SGHMC(step_size=0.3, friction=0.4, temperature=0.0)
    ensemble = ps.infer(network, data, kernel, warmup_steps=STEPS - 1, **run)
    assert ensemble.num_steps == STEPS
    still = ps.infer(network, data, SGHMC(step_size=1e-12, temperature=0.0), warmup_steps=0, **run)
    rows = seen["rows"]
    for chain in range(6):
        weights = {name: value[chain, 0].clone().requires_grad_() for name, value in still.draws.items()}
        optimizer = torch.optim.SGD(weights.values(), lr=0.3**2, momentum=1 - 0.3 * 0.4)
        for step in range(STEPS):
            optimizer.zero_grad()
            loss(weights, rows[step, chain]).backward()
            optimizer.step()
        for name, value in weights.items():
            torch.testing.assert_close(ensemble.draws[name][chain, 0], value.detach(), rtol=1e-9, atol=1e-9)
    assert len(ensemble.draws["output"][:, 0].unique(dim=0)) == 6


@pytest.fixture(scope="module")
def last_draws() -> Posterior:
    kernel = SGHMC(step_size=0.1, friction=1.0)
    return ps.infer(
        known_variance, Y, kernel, num_chains=NUM_CHAINS, num_samples=1, warmup_steps=150, initial="prior", seed=0
    )


def test_the_last_draws_have_the_mean_and_sd_of_the_posterior(last_draws: Posterior) -> None:
    """Independent chains: standard errors are exact. Either fails beyond 4 of them at one seed in 8000.

    From a start 14 posterior sds wide, exp(-0.05 * 150) of it is left; the step size adds 0.13 % to the sd.
    """
    mean, sd = float(Y.sum()) / (len(Y) + 1), (len(Y) + 1) ** -0.5
    draws = last_draws.draws["mu"].flatten()
    errors = float(draws.mean() - mean) / sd * NUM_CHAINS**0.5, float(draws.std() / sd - 1) * (2 * NUM_CHAINS) ** 0.5
    print(f"mean {errors[0]:.2f}, sd {errors[1]:.2f} standard errors")
    assert max(map(abs, errors)) < 4


def test_one_draw_of_each_of_many_chains_is_a_posterior_like_any_other(last_draws: Posterior, tmp_path: Any) -> None:
    assert last_draws.draws["mu"].shape == (NUM_CHAINS, 1)
    assert last_draws.idata["posterior"]["mu"].shape == (NUM_CHAINS, 1)
    summary = az.summary(last_draws.idata)
    assert np.isclose(float(summary.loc["mu", "mean"]), float(last_draws.draws["mu"].mean()), atol=0.01)
    prediction = last_draws.predict()
    assert prediction.draws["obs"].shape == (NUM_CHAINS, 1, len(Y))
    torch.testing.assert_close(prediction.mean["obs"], last_draws.draws["mu"].mean().expand(len(Y)))
    last_draws.save(tmp_path / "run.nc")
    again = ps.load(tmp_path / "run.nc", known_variance, Y)
    assert torch.equal(again.draws["mu"], last_draws.draws["mu"])
    assert again.settings == last_draws.settings


@pytest.mark.parametrize(
    ("asked", "steps"),
    [({}, 1001), ({"warmup_steps": 7}, 8), ({"thinning": 3}, 1003), ({"warmup_steps": 0, "thinning": 2}, 2)],
    ids=str,
)
def test_a_single_draw_has_a_warm_up_worth_the_name(asked: dict[str, int], steps: int) -> None:
    kernel = SGHMC(step_size=0.1)
    posterior = ps.infer(known_variance, Y[:10], kernel, num_samples=1, num_chains=2, seed=0, **asked)
    assert posterior.num_steps == steps


def test_two_draws_have_the_warm_up_of_many() -> None:
    kernel = SGHMC(step_size=0.1)
    assert ps.infer(known_variance, Y[:10], kernel, num_samples=2, num_chains=2, seed=0).num_steps == 10 + 20


def test_a_single_tuned_draw_follows_its_warm_up() -> None:
    tuned = ps.infer(known_variance, Y[:10], num_samples=1, num_chains=2, seed=0)
    assert tuned.settings["thinning"] == 1
    assert tuned.num_steps == tuned.settings["warmup_steps"] + 1 > tuned.settings["tuning"]["pilot_steps"] + 50


def test_what_is_drawn_ahead_is_bounded() -> None:
    """Of 2000 chains with batches of 512 rows, indices for 2 steps; of a few chains for a thousand and more."""
    compiled = compile_model(known_variance, numbers(1000, seed=4), batch_size=512)
    shapes = {"mu": torch.Size([])}
    many, few = (Inputs(compiled, SGHMC(step_size=0.1), shapes, count, 2**20, (0, 1)) for count in (NUM_CHAINS, 4))
    assert many.chunk_steps == 2  # 8 MB of indices each
    assert few.chunk_steps == 2**24 // (4 * 512 * 8)
