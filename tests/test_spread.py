"""Covariances that are shrunk, and autocorrelation times, on draws whose law is known."""

from __future__ import annotations

import math

import arviz as az
import numpy as np
import pytest
import torch
from torch import Tensor

from pyro_scale.hessian import mean_curvature
from pyro_scale.spread import autocorrelation_times, factor_of_inverse, factor_of_spread, shrunk_covariance
from pyro_scale.whitening import divided


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_differences_that_noise_explains_are_not_learned() -> None:
    identity = torch.eye(20, dtype=torch.float64)
    draws = normals(100, 20)
    shrunk = shrunk_covariance(draws, 100.0)
    plain = draws.T @ draws / 100
    assert (shrunk - identity).norm() < 0.2 * (plain - identity).norm()


def test_differences_that_are_real_are_learned() -> None:
    scales = torch.linspace(0.2, 5.0, 5, dtype=torch.float64)
    mixing = torch.linalg.qr(normals(5, 5, seed=1)).Q * scales
    shrunk = shrunk_covariance(normals(4000, 5) @ mixing.T, 4000.0)
    assert torch.allclose(shrunk, mixing @ mixing.T, rtol=0.1, atol=0.3)
    torch.linalg.cholesky(shrunk)


def test_few_draws_still_give_a_positive_matrix() -> None:
    torch.linalg.cholesky(shrunk_covariance(3 * normals(4, 10), 2.0))


def covariance(seed: int, size: int = 20) -> Tensor:
    """With eigenvalues from 0.25 to 4."""
    basis = torch.linalg.qr(normals(size, size, seed=seed)).Q
    return basis * torch.logspace(-0.6, 0.6, size).double() @ basis.T


def test_few_draws_of_a_normal_have_the_covariance_that_its_curvature_says() -> None:
    """Of 30 draws in 20 dimensions the covariance alone has eigenvalues from 0.03 to 3 times those of the exact one."""
    exact = covariance(3)
    draws = normals(30, 20, seed=4) @ torch.linalg.cholesky(exact).T
    factor = factor_of_spread(draws, 30.0, torch.linalg.inv(exact))
    ratios = torch.linalg.eigvals(torch.linalg.solve(exact, factor @ factor.T)).real
    plain = torch.linalg.eigvals(torch.linalg.solve(exact, draws.T @ draws / 30)).real
    print(ratios.aminmax(), plain.aminmax())
    assert plain.min() < 0.1 and plain.max() > 2
    assert ratios.min() > 0.8 and ratios.max() < 1.25
    assert torch.equal(factor, factor.tril())


def test_many_draws_correct_a_curvature_that_says_something_else() -> None:
    exact, other = covariance(5, 4), covariance(6, 4)
    draws = normals(20_000, 4, seed=7) @ torch.linalg.cholesky(exact).T
    factor = factor_of_spread(draws, 2e4, torch.linalg.inv(other))
    ratios = torch.linalg.eigvals(torch.linalg.solve(exact, factor @ factor.T)).real
    assert ratios.min() > 0.95 and ratios.max() < 1.05


def autoregression(kept: float, num_steps: int, num_chains: int) -> Tensor:
    noise = normals(num_steps, num_chains, 1, seed=2)
    draws = [noise[0] / (1 - kept**2) ** 0.5]
    for step in noise[1:]:
        draws.append(kept * draws[-1] + step)
    return torch.stack(draws)


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.9])
def test_the_time_of_an_autoregression(kept: float) -> None:
    draws = autoregression(kept, 4000, 8)
    assert float(autocorrelation_times(draws)) == pytest.approx((1 + kept) / (1 - kept), rel=0.1)


def test_it_is_that_of_arviz() -> None:
    draws = autoregression(0.8, 2000, 4)
    expected = draws.numel() / float(az.ess(np.asarray(draws[..., 0].T), method="mean"))
    assert float(autocorrelation_times(draws)) == pytest.approx(expected, rel=0.05)


def test_chains_that_disagree_and_chains_that_stand_still() -> None:
    apart = autoregression(0.5, 1000, 4) + 10 * torch.arange(4, dtype=torch.float64)[:, None]
    assert float(autocorrelation_times(apart)) > 100
    assert autocorrelation_times(torch.ones(50, 3, 2, dtype=torch.float64)).tolist() == [50.0, 50.0]


def test_a_mean_curvature_counts_sizes_and_the_identity_once() -> None:
    turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]]).double()
    upwards, flat = (turn * torch.tensor(values).double() @ turn.T for values in ([-3.0, 2.0], [3.0, 0.0]))
    expected = (torch.eye(2).double() + turn * torch.tensor([6.0, 2.0]).double() @ turn.T) / 3
    assert torch.allclose(mean_curvature(torch.stack([upwards, flat])), expected)
    assert torch.equal(mean_curvature(upwards.new_zeros(0, 2, 2)), torch.eye(2).double())


def test_many_vectors_are_divided_as_one_is() -> None:
    vectors, spread = normals(5, 3, 4, seed=8), torch.linalg.cholesky(covariance(9, 4))
    found = divided(vectors, spread)
    assert torch.allclose(found @ spread.T, vectors)
    assert torch.allclose(divided(vectors[2, 1], spread), found[2, 1])


@pytest.mark.parametrize(("dtype", "condition"), [(torch.float32, 1e5), (torch.float64, 1e12)])
def test_the_factor_of_an_inverse_survives_rounding(dtype: torch.dtype, condition: float) -> None:
    """Where the inverse itself is no longer positive definite: of twenty matrices, by L^T P L = 1."""
    for seed in range(20):
        basis = torch.linalg.qr(torch.randn(10, 10, generator=torch.Generator().manual_seed(seed), dtype=dtype))[0]
        eigenvalues = torch.logspace(0, math.log10(condition), 10, dtype=dtype)
        precision = basis * eigenvalues @ basis.T
        factor = factor_of_inverse((precision + precision.T) / 2)
        assert torch.equal(factor, factor.tril())
        away = factor.T @ precision @ factor - torch.eye(10, dtype=dtype)
        assert float(away.abs().max()) < 0.05
