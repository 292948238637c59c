"""Distances of samples, against dense twins and SciPy; their p-values by how often they are small where nothing is."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from pyro_scale.diagnostics.distances import energy_distance, mmd
from pyro_scale.diagnostics.independent import independent_draws
from small_models import numbers
from torch import Tensor

from pyro_scale.convergence import ess
from pyro_scale.errors import ArgumentError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def autoregression(num_chains: int, num_samples: int, size: int, correlation: float, seed: int) -> Tensor:
    """Standard normal draws in equilibrium."""
    steps = numbers(num_samples, num_chains, size, seed=seed)
    draws = [steps[0]]
    for step in steps[1:]:
        draws.append(correlation * draws[-1] + math.sqrt(1 - correlation**2) * step)
    return torch.stack(draws, 1)


def test_against_loops_over_pairs() -> None:
    x, y = numbers(7, 3, seed=0), 0.5 + 2 * numbers(5, 3, seed=1)

    def mean(one: Tensor, other: Tensor, kernel: object) -> float:
        pairs = [
            kernel(float((a - b).norm()))  # type: ignore[operator]
            for i, a in enumerate(one)
            for j, b in enumerate(other)
            if one is not other or i != j
        ]
        return float(np.mean(pairs))

    expected = 2 * mean(x, y, float) - mean(x, x, float) - mean(y, y, float)
    assert energy_distance(x, y).value == pytest.approx(expected, rel=1e-12)
    assert math.isnan(energy_distance(x, y).p_value)
    both = torch.cat([x, y])
    length = np.median([float((a - b).norm()) for i, a in enumerate(both) for b in both[:i]])
    for given in (None, 0.7):
        scale = length if given is None else given

        def gaussian(distance: float, scale: float = scale) -> float:
            return math.exp(-(distance**2) / (2 * scale**2))

        expected = mean(x, x, gaussian) + mean(y, y, gaussian) - 2 * mean(x, y, gaussian)
        # torch takes the lower of two values in the middle
        assert mmd(x, y, length=given).value == pytest.approx(expected, rel=1e-12 if given else 0.02)


def test_energy_distance_of_scipy() -> None:
    """SciPy's is the square root, of means over all pairs, each draw with itself among them."""
    x, y = numbers(400, 1, seed=0), 0.3 + 1.5 * numbers(300, 1, seed=1)
    within = [float(torch.cdist(each, each).mean()) / (len(each) - 1) for each in (x, y)]
    expected = scipy.stats.energy_distance(x[:, 0].numpy(), y[:, 0].numpy()) ** 2
    assert energy_distance(x, y).value == pytest.approx(expected - sum(within), abs=1e-12)


def test_known_values_of_normals() -> None:
    """Means and variances that differ; in Monte Carlo standard errors, of 20 repetitions; fails once in 15,000."""
    shift, number = 0.8, 400
    sd = math.sqrt(2)
    across = sd * math.sqrt(2 / math.pi) * math.exp(-(shift**2) / (2 * sd**2)) + shift * math.erf(shift / 2)
    energy = 2 * across - 2 * sd * math.sqrt(2 / math.pi)
    factor = 1 / math.sqrt(1 + sd**2)
    squared = 2 * factor * (1 - math.exp(-(shift**2) / (2 * (1 + sd**2))))
    pairs = [(numbers(number, 1, seed=2 * k), shift + numbers(number, 1, seed=2 * k + 1)) for k in range(20)]
    for expected, found in (
        (energy, [energy_distance(x, y).value for x, y in pairs]),
        (squared, [mmd(x, y, length=1.0).value for x, y in pairs]),
    ):
        z = (np.mean(found) - expected) / (np.std(found, ddof=1) / math.sqrt(len(found)))
        print(f"{np.mean(found):.4f}, expected {expected:.4f}: z {z:.1f}")
        assert abs(z) < 5


def test_a_single_draw_is_a_point_mass() -> None:
    x, point = numbers(50, 2, seed=0), torch.ones(1, 2, dtype=torch.float64)
    expected = 2 * torch.cdist(x, point).mean() - torch.cdist(x, x).sum() / (50 * 49)
    for found in (energy_distance(x, point, generator()), energy_distance(point, x, generator())):
        assert found.value == pytest.approx(float(expected))
        assert math.isnan(found.p_value)
    within = (torch.exp(-(torch.cdist(x, x) ** 2) / 2).sum() - 50) / (50 * 49)
    across = torch.exp(-(torch.cdist(x, point) ** 2) / 2).mean()
    assert mmd(point, x, length=1.0).value == pytest.approx(float(1 + within - 2 * across))


def test_equal_draws() -> None:
    x = numbers(30, 2, seed=0)
    assert energy_distance(x, x, generator()).p_value == 1
    still = torch.zeros(20, 2, dtype=torch.float64)
    assert mmd(still, still, generator()) == (0, 1)
    assert mmd(still, still + 1, generator()).p_value < 0.01
    assert math.isnan(energy_distance(still * torch.nan, still, generator()).value)


@pytest.mark.parametrize("distance", [energy_distance, mmd])
def test_p_values_of_draws_that_mix_slowly(distance: object) -> None:
    """Chains of the same law: 5 % of 200 are found different if they are thinned, many more if they are not.

    So many as 11 % of 200 are found at a true 5 % once in 5,000 times.
    """
    thinned, whole = [], []
    for repeat in range(200):
        x, y = (autoregression(2, 120, 2, 0.8, seed=2 * repeat + k) for k in (0, 1))
        samples = [independent_draws(each, float(torch.cat(ess(each)).min()), 1000) for each in (x, y)]
        thinned.append(distance(*samples, generator(repeat)).p_value)  # type: ignore[operator]
        if repeat < 20:
            whole.append(distance(x.flatten(0, 1), y.flatten(0, 1), generator(repeat)).p_value)  # type: ignore[operator]
    rates = [float((np.array(each) <= 0.05).mean()) for each in (thinned, whole)]
    print(f"found different: {rates[0]:.3f} of thinned draws, {rates[1]:.3f} of all")
    assert rates[0] <= 0.11
    assert rates[1] > 0.3


@pytest.mark.parametrize("distance", [energy_distance, mmd])
def test_p_values_of_differences(distance: object) -> None:
    x = numbers(200, 3, seed=0)
    for other in (numbers(150, 3, seed=1) + 0.5, 2 * numbers(150, 3, seed=2), numbers(150, 3, seed=3) * 0.5):
        assert distance(x, other, generator()).p_value == 0.001  # type: ignore[operator]
    one, other = (distance(x, numbers(150, 3, seed=4), generator(k)).p_value for k in (0, 1))  # type: ignore[operator]
    assert one != other and abs(one - other) < 0.1


def test_how_far_apart_independent_draws_are() -> None:
    """The lag at which an autoregression of 0.8, whose time is 9, has forgotten all but 0.05 is 14."""
    draws = torch.arange(600.0).reshape(2, 300, 1)
    kept = independent_draws(draws, 600 / 9, 1000)
    assert kept[:3, 0].tolist() == [0, 14, 28]
    assert len(kept) == 2 * 22
    assert len(independent_draws(draws, math.nan, 1000)) == len(independent_draws(draws, 700.0, 1000)) == 600
    assert len(independent_draws(draws, 1.5, 1000)) == 2
    assert independent_draws(draws, 600.0, 3)[:, 0].tolist() == [0, 300, 599]


@pytest.mark.parametrize("shapes", [((3,), (3,)), ((3, 2), (3, 1)), ((0, 2), (3, 2)), ((3, 0), (3, 0))])
def test_samples_that_do_not_fit(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(ArgumentError, match="must be \\(draws, values\\), with the same values and at least one draw"):
        energy_distance(*(torch.zeros(shape) for shape in shapes))
