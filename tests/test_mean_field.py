"""A normal in the place of a mode, against posteriors whose coordinates are independent normals."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from small_models import numbers
from torch import Tensor

from pyro_scale import mean_field, tree
from pyro_scale.compile import compile_model
from pyro_scale.errors import StoppedError
from pyro_scale.mode import Mode

NUM_ROWS = 40
PRIOR = torch.tensor([1.0, 100.0, 0.01]).double()
Y = 0.5 * PRIOR + 2 * PRIOR * numbers(NUM_ROWS, 3, seed=1)


def model(y: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(torch.zeros(3), PRIOR).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("obs", dist.Normal(w, 2 * PRIOR).to_event(1), obs=y)


PRECISION = PRIOR**-2 + NUM_ROWS * (2 * PRIOR) ** -2
MEAN = Y.sum(0) / (2 * PRIOR) ** 2 / PRECISION


def evidence() -> float:
    """Of the rows, by a normal distribution of all of them in each coordinate."""
    found = 0.0
    for y, prior in zip(Y.T, PRIOR, strict=True):
        covariance = 4 * prior**2 * torch.eye(NUM_ROWS, dtype=torch.float64) + prior**2
        rows = dist.MultivariateNormal(torch.zeros(NUM_ROWS, dtype=torch.float64), covariance)
        found += float(rows.log_prob(y))
    return found


def place(at: Tensor, curvature: Tensor, log_posterior: float = 0.0) -> Mode:
    return Mode({"w": at}, log_posterior, False, 0, curvature)


@pytest.mark.parametrize("size", [None, 10])
def test_the_normal_is_the_posterior_and_its_bound_the_evidence(size: int | None) -> None:
    compiled = compile_model(model, Y, batch_size=size)
    broken = place(MEAN, torch.full((3,), torch.inf).double())
    near = place(MEAN + 3 * PRECISION.rsqrt(), 4 * PRECISION)
    fit = mean_field.best_normal(compiled, [broken, near], 1500, (1, 2), lambda: None)
    assert fit is not None
    off = (tree.ravel(fit.position) - MEAN) * PRECISION.sqrt()
    print(off.tolist(), (fit.negative_hessian / PRECISION).tolist(), fit.log_posterior, evidence())
    assert float(off.abs().max()) < 0.2
    assert torch.allclose(fit.negative_hessian, PRECISION, rtol=0.15)
    assert fit.log_posterior == pytest.approx(evidence(), abs=0.05 if size is None else 3.0)


def test_the_best_fit_is_taken() -> None:
    """From very far away 100 steps do not lead to the posterior."""
    compiled = compile_model(model, Y)
    far, near = place(MEAN + 1e4 * PRIOR, PRECISION), place(MEAN, PRECISION)
    for places in ([far, near], [near, far]):
        fit = mean_field.best_normal(compiled, places, 100, (1, 2), lambda: None)
        assert fit is not None and torch.allclose(tree.ravel(fit.position), MEAN, atol=0, rtol=0.5)


def test_nothing_is_fitted_where_no_curvature_is_finite() -> None:
    broken = place(MEAN, torch.full((3,), torch.nan).double())
    assert mean_field.best_normal(compile_model(model, Y), [broken], 10, (1, 2), lambda: None) is None


def test_the_search_can_be_stopped() -> None:
    def stop() -> None:
        raise StoppedError("enough")

    with pytest.raises(StoppedError, match="enough"):
        mean_field.best_normal(compile_model(model, Y), [place(MEAN, PRECISION)], 10, (1, 2), stop)


@pytest.mark.parametrize(
    ("rise", "narrower", "expected"),
    [
        (1000.0, math.exp(10.0), True),  # the evidence falls by 500
        (1000.0, math.exp(0.5), False),  # it rises: towards a mode
        (1000.0, math.exp(5.0), False),  # still, by 250: half of the logs counts
        (10.0, math.exp(10.0), False),  # no rise that is told from noise
        (-1000.0, math.exp(10.0), False),
    ],
)
def test_a_climb_is_endless_where_only_the_density_rises(rise: float, narrower: float, expected: bool) -> None:
    before = place(torch.zeros(300), torch.ones(300).double(), -5000.0)
    after = place(torch.zeros(300), torch.full((300,), narrower).double(), -5000.0 + rise)
    assert mean_field.is_endless(before, after) == expected
