"""R-hat and effective sample sizes against ArviZ, nested R-hat against its definition and against chains in modes."""

from __future__ import annotations

import arviz as az
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pyro_scale.convergence import effective_size, ess, rhat, rhat_nested
from pyro_scale.errors import ArgumentError


def chains(seed: int) -> NDArray[np.float64]:
    """An autoregression of random length, number of chains and correlation; of whole numbers for every seventh seed."""
    generator = np.random.default_rng(seed)
    num_chains, num_samples = int(generator.integers(2, 6)), int(generator.integers(4, 40 if seed % 2 else 300))
    share = generator.uniform(-0.9, 0.99)
    steps = generator.normal(size=(num_chains, num_samples))
    values = np.zeros_like(steps)
    for i in range(num_samples):
        values[:, i] = share * values[:, i - 1] + steps[:, i] if i else steps[:, 0]
    return np.round(values) if seed % 7 == 0 else values


@pytest.mark.parametrize("seed", range(60))
def test_the_numbers_are_those_of_arviz(seed: int) -> None:
    values = chains(seed)
    draws = torch.tensor(values)
    bulk, tail = ess(draws)
    assert float(rhat(draws)) == pytest.approx(float(az.rhat(values)), rel=1e-9, nan_ok=True)
    assert float(bulk) == pytest.approx(float(az.ess(values, method="bulk")), rel=1e-9, nan_ok=True)
    assert float(tail) == pytest.approx(float(az.ess(values, method="tail")), rel=1e-9, nan_ok=True)
    assert effective_size(draws) == pytest.approx(float(az.ess(values, method="mean")), rel=1e-9, nan_ok=True)


def test_many_values_at_once_are_what_each_is_alone() -> None:
    draws = torch.randn(3, 50, 2, 4, generator=torch.Generator().manual_seed(0))
    assert rhat(draws).shape == (2, 4)
    for i, j in ((0, 0), (1, 3)):
        assert float(rhat(draws)[i, j]) == pytest.approx(float(rhat(draws[..., i, j])), rel=1e-12)
        for all_of_them, one in zip(ess(draws), ess(draws[..., i, j]), strict=True):
            assert float(all_of_them[i, j]) == pytest.approx(float(one), rel=1e-12)


def test_constant_and_broken_draws() -> None:
    constant, broken = torch.ones(4, 10, 1), torch.arange(40.0).reshape(4, 10, 1)
    broken[0, 0] = torch.nan
    assert rhat(torch.cat([constant, broken], -1)).isnan().all()
    assert ess(constant)[0] == 40
    assert all(each.isnan().all() for each in ess(broken))


def test_too_few_draws_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r"There are 3 draws a chain; R-hat and effective sample sizes need 4\."):
        rhat(torch.zeros(4, 3))


def test_nested_r_hat_is_its_definition() -> None:
    """Equations 8 to 10 of the paper, written out in loops."""
    draws = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    grouped = draws.reshape(3, 2, 5).tolist()
    means = [[sum(chain) / 5 for chain in group] for group in grouped]
    over = [sum(group) / 2 for group in means]
    between = sum((each - sum(over) / 3) ** 2 for each in over) / 2
    within = 0.0
    for group, mean, center in zip(grouped, means, over, strict=True):
        within += sum((each - center) ** 2 for each in mean) / (2 - 1) / 3
        within += sum(sum((x - m) ** 2 for x in chain) / (5 - 1) for chain, m in zip(group, mean, strict=True)) / 2 / 3
    assert float(rhat_nested(draws, 3)) == pytest.approx((1 + between / within) ** 0.5, rel=1e-12)


def test_nested_r_hat_sees_modes_that_chains_of_one_draw_do_not_leave() -> None:
    noise = torch.randn(64, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mode = torch.arange(8).repeat_interleave(8).unsqueeze(1) % 2
    assert float(rhat_nested(noise, 8)) < 1.1
    assert float(rhat_nested(noise + 6 * mode, 8)) > 2


@pytest.mark.parametrize(("number", "samples"), [(1, 5), (3, 5), (8, 1)])
def test_superchains_that_cannot_be_are_refused(number: int, samples: int) -> None:
    with pytest.raises(ArgumentError, match=f"num_superchains is {number}; it must be at least 2, and divide the 8"):
        rhat_nested(torch.zeros(8, samples), number)
