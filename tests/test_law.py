"""The law of a kernel at a finite step size, and what minibatches without replacement add to it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from kernel_cases import AFFINE, KernelCase, name_of
from torch import Tensor
from torch.func import vmap

from pyro_scale.bias import predicted_bias
from pyro_scale.kernels import BAOAB, SGHMC, SGLD, SGNHT
from pyro_scale.law import law_of, noise_gain
from pyro_scale.step_sizes import LARGEST, MOST_NOISE, SMALLEST, largest_step
from pyro_scale.types import Position, Settings


@pytest.mark.parametrize("curvature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("step_size", [0.01, 0.3])
def test_sgld_is_an_autoregression(step_size: float, curvature: float) -> None:
    law = law_of(SGLD(), step_size, curvature)
    kept = 1 - step_size * curvature
    assert law.sd**2 == pytest.approx(1 / (1 - step_size * curvature / 2), rel=1e-9)
    assert law.autocorrelation_time == pytest.approx((1 + kept) / (1 - kept), rel=1e-9)
    expected = step_size * kept ** torch.arange(len(law.response), dtype=torch.float64)
    assert torch.allclose(law.response, expected, rtol=1e-9, atol=1e-300)
    assert float(law.response[-1]) < 1e-5 * step_size
    assert math.isnan(law.momentum_sd) and len(law.momentum_response) == 0


def test_the_figures_of_sghmc_and_baoab() -> None:
    assert law_of(SGHMC(), 0.1).sd == pytest.approx(1.0013, abs=5e-5)
    assert law_of(SGHMC(), 0.2).sd == pytest.approx(1.0056, abs=5e-5)
    assert law_of(SGHMC(), 0.1).momentum_sd == pytest.approx(1.027, abs=5e-4)
    assert law_of(BAOAB(), 1.2).sd == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("case", AFFINE, ids=name_of)
def test_it_is_the_law_of_many_chains(case: KernelCase) -> None:
    """Of the temperature and other settings of the case, whose step size is replaced."""
    step_size, curvature, num_chains = 0.3, 1.5, 40_000
    temperature = case.kernel.temperature
    law = law_of(case.kernel, step_size, curvature)

    def target(position: Position, batch: Any) -> Tensor:
        return -curvature * position["x"] ** 2 / 2

    bound = case.kernel.bind(target, 1)
    generator = torch.Generator().manual_seed(0)

    def noise() -> Position:
        return {"x": torch.randn(num_chains, generator=generator, dtype=torch.float64)}

    state = vmap(bound.init)({"x": torch.zeros(num_chains, dtype=torch.float64)}, noise())
    settings = Settings(*torch.tensor([step_size, temperature, 0.0], dtype=torch.float64))
    update: Callable[..., Any] = vmap(lambda state, noise: bound.update(state, None, noise, settings)[0])
    for _ in range(200):
        state = update(state, noise())
    assert float(state.position["x"].std()) == pytest.approx(law.sd * (temperature / curvature) ** 0.5, rel=0.015)
    if case.momentum:
        assert float(state.momentum["x"].std()) == pytest.approx(law.momentum_sd * temperature**0.5, rel=0.015)


@pytest.mark.parametrize("case", [case for case in AFFINE if case.momentum], ids=name_of)
def test_responses_are_those_of_a_chain_that_is_pushed_once(case: KernelCase) -> None:
    step_size, curvature = 0.3, 1.5
    law = law_of(case.kernel, step_size, curvature)

    def target(position: Position, batch: Tensor) -> Tensor:
        return batch * position["x"] - curvature * position["x"] ** 2 / 2

    bound = case.kernel.bind(target, 1)
    zero = {"x": torch.zeros((), dtype=torch.float64)}
    state, settings, found = bound.init(zero, zero), Settings(step_size, case.kernel.temperature), []
    for number in range(40):
        state, _ = bound.update(state, torch.tensor(float(number == 0), dtype=torch.float64), zero, settings)
        found.append(torch.stack([state.position["x"], state.momentum["x"]]))
    wanted = torch.stack(found, 1)
    torch.testing.assert_close(
        torch.stack([law.response, law.momentum_response])[:, :40], wanted, rtol=1e-9, atol=1e-15
    )
    assert len(law.response) == len(law.momentum_response)


def test_a_step_that_is_not_stable_has_no_law() -> None:
    law = law_of(SGLD(), 2.5)
    assert law.sd == law.autocorrelation_time == math.inf
    assert len(law.response) == len(law.momentum_response) == 0


@pytest.mark.parametrize("per_epoch", [2, 3, 7, 50])
def test_minibatches_without_replacement_against_their_covariance(per_epoch: int) -> None:
    """The covariance of all steps is written down for each place of the last step within its permutation."""
    response = law_of(SGHMC(), 0.2).response
    length = len(response)
    added = 0.0
    for phase in range(per_epoch):
        epoch = (torch.arange(length) + phase) // per_epoch
        same = epoch[:, None] == epoch
        covariance = (same.double() / (1 - per_epoch)).fill_diagonal_(1)
        added += float(response @ covariance @ response) / per_epoch
    assert noise_gain(response, per_epoch) == pytest.approx(added, rel=1e-9)


def test_all_rows_add_nothing_and_independent_rows_all() -> None:
    response = law_of(SGLD(), 0.2).response
    assert noise_gain(response, 1.0) == 0
    assert noise_gain(response, math.inf) == pytest.approx(0.2 / (2 - 0.2), rel=1e-9)
    assert noise_gain(response, 1e9) == pytest.approx(0.2 / (2 - 0.2), rel=1e-4)


def test_the_largest_step_is_at_the_edge() -> None:
    found = largest_step(SGLD(), 0.025, 2.0, 0.0, 10.0, LARGEST)
    assert law_of(SGLD(), found, 2.0).sd < 1.025 < law_of(SGLD(), 1.06 * found, 2.0).sd
    assert largest_step(BAOAB(), 0.025, 2.0, 0.0, 10.0, LARGEST) == LARGEST
    noisy = largest_step(BAOAB(), 0.025, 2.0, 30.0, 1000.0, LARGEST)
    assert 30 * noise_gain(law_of(BAOAB(), noisy).response, 1000.0) < 0.05
    assert 30 * noise_gain(law_of(BAOAB(), 1.06 * noisy).response, 1000.0) > 0.05
    assert largest_step(SGLD(), 1e-9, 2.0, 0.0, 10.0, LARGEST) == pytest.approx(SMALLEST, rel=0.06)


@pytest.mark.parametrize("kernel", [SGLD(), SGHMC(), SGNHT(), BAOAB()], ids=lambda kernel: type(kernel).__name__)
@pytest.mark.parametrize("curvature", [2.0, 8.0, 16.0, 64.0])
def test_steps_are_stable_at_places_that_are_harder_than_those_seen(kernel: Any, curvature: float) -> None:
    """BAOAB is exact up to its limit, where step_size**2 * curvature is 4, and a thermostat nearly so."""
    found = largest_step(kernel, 0.025, curvature, 0.0, 1.0, LARGEST)
    assert found**2 * curvature < 4 / 7
    assert law_of(kernel, found, 7 * curvature).sd < math.inf


def test_a_thermostat_takes_steps_at_which_cancelled_noise_cools_little() -> None:
    """Momenta see the noise of minibatches of which, over a permutation, positions see little: sds come out narrow."""
    found = largest_step(SGNHT(), 0.02, 2.0, 50.0, 20.0, LARGEST)
    narrow, chosen = (
        float(predicted_bias(SGNHT(step_size=step), torch.ones(1), 50.0, 1, 20.0).minibatches) for step in (0.03, found)
    )
    assert MOST_NOISE > 0.03**2 * 50  # which is the other condition
    assert narrow < -0.05
    assert -0.02 <= chosen < -0.01
