"""Temperatures of draws whose width is known, and noise that momenta measure."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_scale.kernels import BAOAB, SGHMC, SGLD
from pyro_scale.law import law_of
from pyro_scale.temperature import Directions, Measured, configurational, sd_from_momenta
from pyro_scale.types import Settings

NUM_DATA, CHAINS = 400, 4000


def one_direction(curvature: float) -> Directions:
    return Directions(torch.tensor([curvature]).double(), torch.ones(1).double())


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_the_error_of_a_mean_counts_correlation() -> None:
    seen = Measured.mean(normal(4, 500).repeat_interleave(5, 1))
    assert seen.error == pytest.approx(1 / math.sqrt(2000), rel=0.15)


@pytest.mark.parametrize("width", [0.5, 1.0, 2.0])
def test_configurational_temperature_is_the_square_of_the_width(width: float) -> None:
    """Gaussian of a dense precision, three sets of rows whose precisions differ around it: within 3.5 errors."""
    half = normal(5, 5) / 5 + torch.eye(5)
    precision = half @ half.T
    x = width * torch.linalg.solve(half.T, normal(5, 4000)).T.reshape(4, 1000, 5)
    # what rows have in common with no position, a thousand standard deviations of the gradient, is no error of the mean
    seen = configurational(x, [-share * (x - 3) @ precision + 1000 * share for share in (0.98, 1.0, 1.02)])
    print(seen)
    assert abs(seen.value - width**2) < 3.5 * seen.error
    assert seen.error < 0.05 * width**2


def test_the_error_counts_rows_that_disagree() -> None:
    x = normal(4, 1000, 1)
    alike, apart = (configurational(x, [-share * x for share in shares]) for shares in ((1, 1), (0.5, 1.5)))
    assert apart.error > 5 * alike.error


def simulated(kernel: Any, noise: float, curvature: float) -> tuple[Tensor, float]:
    """Kinetic energies, and the sd of positions over the posterior's, of chains whose gradient has that variance."""

    def target(position: dict[str, Tensor], push: Tensor) -> Tensor:
        return NUM_DATA * (push * position["x"] - curvature * position["x"] ** 2 / 2).sum()

    bound = kernel.bind(target, NUM_DATA)
    generator = torch.Generator().manual_seed(1)
    sd = (NUM_DATA * curvature) ** -0.5

    def draw() -> Tensor:
        return torch.randn(CHAINS, generator=generator, dtype=torch.float64)

    state = bound.init({"x": sd * draw()}, {"x": draw()})
    settings, kinetic, positions = Settings(kernel.step_size, kernel.temperature), [], []
    for step in range(1200):
        state, _ = bound.update(state, noise**0.5 * draw(), {"x": draw()}, settings)
        if step >= 200 and step % 20 == 0:
            kinetic.append(state.momentum["x"] ** 2)
            positions.append(state.position["x"])
    return torch.stack(kinetic, 1), float(torch.stack(positions).std() / sd)


@pytest.mark.parametrize("known", [0.0, 0.6])
@pytest.mark.parametrize("curvature", [1.0, 0.3])
@pytest.mark.parametrize("kernel", [SGHMC(step_size=0.3), BAOAB(step_size=0.5), SGHMC(step_size=0.2, friction=2.0)])
def test_momenta_tell_how_wide_minibatch_noise_makes_positions(kernel: Any, curvature: float, known: float) -> None:
    """Against a simulation, with and without V known in part: by 3 percent of the sd, from 0 to 40 percent too wide."""
    noise = 2.5 / NUM_DATA
    kernel = replace(kernel, gradient_variance=known * noise)
    kinetic, sd = simulated(kernel, noise, curvature)
    seen = sd_from_momenta(kernel, NUM_DATA, math.inf, kinetic, one_direction(curvature), known * noise)
    assert seen is not None
    print(sd, seen)
    assert abs(1 + seen.value - sd) < 0.03
    assert seen.error < 0.01


def test_no_noise_is_no_error() -> None:
    kernel = SGHMC(step_size=0.3)
    kinetic, _ = simulated(kernel, 0.0, 1.0)
    seen = sd_from_momenta(kernel, NUM_DATA, 20.0, kinetic, Directions.alike(), 0.0)
    assert seen is not None and abs(seen.value - (law_of(kernel, 0.3).sd - 1)) < 0.005
    assert sd_from_momenta(kernel, NUM_DATA, 1.0, kinetic, Directions.alike(), 0.0) is None


def test_a_coordinate_between_two_directions_has_the_law_of_both() -> None:
    """One steep and one flat, at a long step without noise: its momenta are warm by the step alone."""
    kernel, curvatures = SGHMC(step_size=0.7), (1.9, 0.1)
    kinetic = torch.stack([simulated(kernel, 0.0, curvature)[0] for curvature in curvatures]).mean(0)
    both = Directions(torch.tensor(curvatures).double(), torch.full((2,), 0.5).double())
    right = sd_from_momenta(kernel, NUM_DATA, math.inf, kinetic, both, 0.0)
    assert right is not None
    expected = math.sqrt(sum(law_of(kernel, 0.7, each).sd ** 2 for each in curvatures) / 2) - 1
    print(right, expected)
    assert abs(right.value - expected) < 0.005


def test_without_momenta_nothing_is_measured() -> None:
    assert sd_from_momenta(SGLD(step_size=0.1), NUM_DATA, 10.0, torch.ones(4, 10), Directions.alike(), 0.0) is None
