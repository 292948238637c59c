"""Covariances that are shrunk, and autocorrelation times, on draws whose law is known."""

from __future__ import annotations

import arviz as az
import numpy as np
import pytest
import torch
from torch import Tensor

from pyro_scale.spread import autocorrelation_times, shrunk_covariance


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
