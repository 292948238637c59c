"""Trouble that only shows under way: sites that come and go, schedules that go astray, shapes that values decide."""

from __future__ import annotations

import logging
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from small_models import DATA, known_variance, numbers, regression
from torch import Tensor

import pyro_scale as ps
from pyro_scale.capture import CaptureError, record
from pyro_scale.errors import ArgumentError, ModelError

Y = {"y": numbers(20, seed=5)}


def branching(y: Tensor) -> None:
    """Visits a site only where w is rarely."""
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    if w.detach() > 1.9:
        pyro.sample("v", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("obs", dist.Normal(0.0 * w, 1.0), obs=y)


def test_a_site_that_comes_in_mid_run_leaves_the_draws() -> None:
    stopped = []
    for seed in range(3):
        with pytest.raises(ModelError, match="different sites on different runs: 'v' came"):
            ps.infer(branching, Y, ps.kernels.SGHMC(step_size=0.5), num_samples=3000, warmup_steps=0, thinning=1,
                     num_chains=1, seed=seed)  # fmt: skip
            raise AssertionError("all runs visit the rare site")
        stopped.append(seed)
    assert stopped


def test_the_error_of_a_callback_leaves_the_draws() -> None:
    def callback(progress: Any) -> None:
        if progress.num_draws:
            raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine") as caught:
        ps.infer(regression, DATA, num_samples=20, warmup_steps=0, thinning=1, seed=0, callback=callback)
    assert caught.value.posterior.draws["w"].shape[1] > 0  # type: ignore[attr-defined]


def test_a_position_lacks_a_site() -> None:
    compiled = ps.compile_model(regression, DATA)
    with pytest.raises(ArgumentError, match="position lacks the latent site 'sigma'; got 'w'"):
        compiled.log_posterior({"w": torch.zeros(2, dtype=torch.float64)}, compiled.batch())


def test_no_step_of_a_schedule_may_turn_the_momentum_around() -> None:
    kernel = ps.kernels.SGHMC(step_size=lambda step: 0.01 * (step + 1), friction=2.0)
    ps.infer(known_variance, Y, kernel, num_samples=50, warmup_steps=0, thinning=1, seed=0)
    with pytest.raises(ArgumentError, match=r"SGHMC: step_size\(50\) is 0\.51; .* of at most 0\.5"):
        ps.infer(known_variance, Y, kernel, num_samples=51, warmup_steps=0, thinning=1, seed=0)


X = numbers(60, 2, seed=6)
ROWS = {"x": X, "group": torch.arange(60) % 7, "y": X[:, 0] + numbers(60, seed=7)}


def masked(x: Tensor, group: Tensor, y: Tensor) -> None:
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    positive = x[:, 1] > 0
    mean = b * x[:, 0]
    mean[positive] = mean[positive] + b * torch.ones_like(x[positive, 0])
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.Normal(mean, 1.0), obs=y)


def selected(x: Tensor, group: Tensor, y: Tensor) -> None:
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    where = (x[:, 1] > 0.5).nonzero()[:, 0]
    mean = (b * x[:, 0]).index_add(0, where, b * torch.ones(len(where)))
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.Normal(mean, 1.0), obs=y)


def distinct(x: Tensor, group: Tensor, y: Tensor) -> None:
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    labels, position = torch.unique(group, return_inverse=True)
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.Normal(b * labels[position].to(x), 1.0), obs=y)


@pytest.mark.parametrize("model", [masked, selected, distinct])
def test_shapes_that_values_decide_are_not_recorded(model: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Another batch has other shapes: the run goes on, and is that of the handlers."""
    with caplog.at_level(logging.INFO, "pyro_scale"):
        posterior = ps.infer(model, ROWS, num_samples=30, warmup_steps=0, thinning=1, batch_size=6, seed=0)
    assert posterior.draws["b"].shape == (4, 30)
    assert posterior.settings["steps_run"].startswith("eager")
    assert "depends on values" in caplog.text or "control flow" in caplog.text


def test_indices_by_number_are_recorded_and_masks_are_not() -> None:
    x, group = X[:, 0], ROWS["group"]
    table = numbers(7, seed=8)
    assert torch.equal(record(lambda g: table[g], group)(group.flip(0)), table[group.flip(0)])
    with pytest.raises(CaptureError, match=r"aten\.index\.Tensor depends on values"):
        record(lambda v: v[v > 0].sum(), x)
