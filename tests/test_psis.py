"""Smoothed importance weights, against ArviZ itself, a shape known in closed form, and both of ArviZ's signs."""

from __future__ import annotations

import sys
import types

import arviz as az
import numpy as np
import pytest
from pyro_scale.diagnostics.psis import largest_k, smoothed
from scipy.special import logsumexp

RNG = np.random.default_rng(0)
NORMALS = RNG.normal(size=(8, 4000))


def ratios(sd: float) -> np.ndarray:
    """Normal(0, sd) over Normal(0, 1): the ratio has a Pareto tail of shape 1 - 1 / sd^2 where sd > 1."""
    return -(NORMALS**2) / 2 / sd**2 + NORMALS**2 / 2


@pytest.mark.parametrize("r_eff", [1.0, 0.3])
def test_as_arviz(r_eff: float) -> None:
    weights, k = smoothed(ratios(1.3), r_eff)
    expected = az.psislw(ratios(1.3), r_eff)
    np.testing.assert_allclose(weights, expected[0], atol=1e-12)
    np.testing.assert_allclose(k, expected[1], atol=1e-12)
    np.testing.assert_allclose(logsumexp(weights, axis=1), 0, atol=1e-12)


@pytest.mark.parametrize("sd", [1.2, 1.5, 1.75])
def test_the_shape_is_that_of_the_tail(sd: float) -> None:
    """A single k has a standard error of about 0.1, the mean of eight of 0.035; fits are some 0.05 too low."""
    _, k = smoothed(ratios(sd))
    print(sd, k.mean())
    assert abs(k.mean() - (1 - 1 / sd**2)) < 0.17


def test_narrow_targets_have_no_tail() -> None:
    assert (smoothed(ratios(0.7))[1] < 0).all()


def test_weights_that_are_all_the_same() -> None:
    weights, k = smoothed(np.full((2, 100), 3.0))
    np.testing.assert_allclose(weights, -np.log(100))
    assert (k == -np.inf).all()
    few = np.where(np.arange(100) < 50, 0.0, -1.0)  # the largest are the same
    weights, k = smoothed(few)
    assert k == -np.inf and weights[0] - weights[-1] == pytest.approx(1.0)


def test_draws_of_no_weight() -> None:
    log_weights = ratios(1.2)[0].copy()
    log_weights[:10] = -np.inf
    weights, k = smoothed(log_weights)
    assert (weights[:10] == -np.inf).all() and np.isfinite(weights[10:]).all() and np.isfinite(k)


def test_shapes_and_types() -> None:
    whole = smoothed(ratios(1.3).reshape(2, 4, -1))
    assert whole[0].shape == (2, 4, 4000) and whole[1].shape == (2, 4)
    weights, k = smoothed(ratios(1.3)[0].astype(np.float32))
    assert weights.dtype == k.dtype == np.float64
    assert float(k) == pytest.approx(whole[1][0, 0], abs=1e-4)


def test_arviz_of_the_next_generation_takes_the_sign_of_the_log_likelihood(monkeypatch: pytest.MonkeyPatch) -> None:
    def psislw(log_likelihood: np.ndarray, r_eff: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        return az.psislw(-log_likelihood, r_eff)  # ArviZ 1.3: what it takes is minus the log weights

    expected = smoothed(ratios(1.3), 0.5)
    module = types.ModuleType("arviz_stats.base")
    module.array_stats = types.SimpleNamespace(psislw=psislw)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "arviz_stats", types.ModuleType("arviz_stats"))
    monkeypatch.setitem(sys.modules, "arviz_stats.base", module)
    monkeypatch.setattr(az, "__version__", "1.3.0")
    for found, wanted in zip(smoothed(ratios(1.3), 0.5), expected, strict=True):
        np.testing.assert_allclose(found, wanted)


def test_the_limit_falls_with_the_number_of_draws() -> None:
    assert largest_k(10_000) == 0.7 and largest_k(2200) == pytest.approx(0.7, abs=1e-3)
    assert largest_k(100) == 0.5
