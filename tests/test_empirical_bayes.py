"""Arguments of a model at the maximum of Laplace's evidence, against closed forms, and what has no maximum."""

from __future__ import annotations

import logging
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.optimize import minimize
from scipy.stats import multivariate_normal

import pyro_scale as ps
from pyro_scale.errors import ArgumentError, ModelError
from pyro_scale.kernels import DenseLaplace

ROWS = 25


def normals(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X = normals(0, ROWS, 3)
LINEAR = {"x": X, "y": X @ torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64) + 3 + 0.3 * normals(1, ROWS)}


def linear(x, y=None, prior_scale=1.0, noise=1.0, intercept=4.0):
    w = pyro.sample("w", dist.Normal(0.0, prior_scale).expand([3]).to_event(1))
    b = pyro.sample("b", dist.Normal(0.0, intercept))
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.Normal(x @ w + b, noise), obs=y)


def log_evidence(prior_scale, noise):
    x = LINEAR["x"].numpy()
    covariance = prior_scale**2 * x @ x.T + 4.0**2 + noise**2 * np.eye(ROWS)
    return multivariate_normal.logpdf(LINEAR["y"].numpy(), np.zeros(ROWS), covariance)


def test_conjugate_regression_reaches_the_maximum_of_its_evidence():
    start = {"prior_scale": 0.5, "noise": 1.0}
    found = ps.maximize_marginal_likelihood(linear, LINEAR, start, batch_size=10, num_samples=7, seed=0)
    exact = minimize(lambda z: -log_evidence(*np.exp(z)), np.zeros(2), method="Nelder-Mead",
                     tol=1e-10)  # fmt: skip
    assert list(found.values.values()) == pytest.approx(np.exp(exact.x).tolist(), rel=1e-4)
    assert found.log_marginal_likelihood == pytest.approx(-exact.fun, rel=1e-9)
    assert found.log_marginal_likelihood_at_start == pytest.approx(log_evidence(**start), rel=1e-9)
    assert found.converged and max(map(abs, found.slope.values())) < 1e-4
    assert found.posterior.log_marginal_likelihood == found.log_marginal_likelihood
    assert found.posterior.draws["w"].shape == (1, 7, 3) and found.posterior.verdict
    assert found.num_fits <= 80


@pytest.mark.parametrize("method", ["laplace_dense", "laplace_diag", "laplace_kfac", "laplace_lowrank"])
def test_every_structure_reaches_the_maximum_where_it_is_exact(method):
    """One output, and covariates that are orthogonal: the precision is diagonal, and a Kronecker product."""
    x = torch.linalg.qr(X).Q * ROWS**0.5
    y = x @ torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64) + 0.3 * normals(1, ROWS)

    def model(x, y=None, prior_scale=1.0):
        w = pyro.sample("w", dist.Normal(0.0, prior_scale).expand([3]).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(x @ w, 0.3), obs=y)

    def evidence(scale):
        covariance = scale**2 * x.numpy() @ x.numpy().T + 0.3**2 * np.eye(ROWS)
        return multivariate_normal.logpdf(y.numpy(), np.zeros(ROWS), covariance)

    found = ps.maximize_marginal_likelihood(
        model, {"x": x, "y": y}, {"prior_scale": 0.5}, method, num_samples=2, seed=0
    )
    exact = minimize(lambda z: -evidence(math.exp(z[0])), np.zeros(1), method="Nelder-Mead", tol=1e-10)
    assert found.values["prior_scale"] == pytest.approx(math.exp(exact.x[0]), rel=1e-4)
    assert found.log_marginal_likelihood == pytest.approx(-exact.fun, rel=1e-9)


def log_evidence_of_logistic(x, y, scale):
    """Newton's method, and the determinant of the Hessian, by numpy."""
    w = np.zeros(x.shape[1])
    for _ in range(50):
        p = 1 / (1 + np.exp(-x @ w))
        hessian = x.T @ (x * (p * (1 - p))[:, None]) + np.eye(len(w)) / scale**2
        w = w + np.linalg.solve(hessian, x.T @ (y - p) - w / scale**2)
    likelihood = (y * (x @ w) - np.logaddexp(0, x @ w)).sum()
    return likelihood - 0.5 * (w @ w) / scale**2 - len(w) * math.log(scale) - 0.5 * np.linalg.slogdet(hessian)[1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_logistic_regression_ends_where_the_slope_is_zero(dtype):
    x = normals(2, 60, 2)
    y = (x[:, 0] * 2 - x[:, 1] + normals(3, 60) > 0).double()

    def model(x, y=None, *, scale, num):
        w = pyro.sample("w", dist.Normal(0.0, scale).expand([num]).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Bernoulli(logits=x @ w), obs=y)

    data = {"x": x.to(dtype), "y": y.to(dtype)}
    found = ps.maximize_marginal_likelihood(model, data, {"scale": 0.3}, constants={"num": 2}, num_samples=2, seed=0)
    x, y, z = x.numpy(), y.numpy(), math.log(found.values["scale"])
    here, above, below = (log_evidence_of_logistic(x, y, math.exp(z + step)) for step in (0, 1e-4, -1e-4))
    slope, curvature = (above - below) / 2e-4, (above + below - 2 * here) / 1e-8
    limit = {torch.float64: 1e-4, torch.float32: 3e-2}[dtype]
    assert curvature < -0.5 and abs(slope / curvature) < limit  # of the way, in the logarithm
    assert found.converged and found.log_marginal_likelihood == pytest.approx(here, rel=1e-5)


def groups(y, prior_scale=1.0, noise=1.0, unused=1.0):
    with pyro.plate("groups", y.shape[1]):
        mean = pyro.sample("mean", dist.Normal(0.0, prior_scale))
    with pyro.plate("data", len(y)):
        pyro.sample("obs", dist.Normal(mean, noise).to_event(1), obs=y)


SMALL = {"y": torch.tensor([[0.3, -0.2, 0.1], [-0.4, 0.2, 0.0]], dtype=torch.float64)}
EQUAL = {"y": torch.tensor([[3.0, -2.0, 1.0], [3.0, -2.0, 1.0]], dtype=torch.float64)}


@pytest.mark.parametrize(
    ("data", "name", "end"),
    [(SMALL, "prior_scale", "to 0, "), (EQUAL, "noise", "to 0, "), (SMALL, "unused", "")],
)
def test_no_maximum(data, name, end):
    """Groups without a difference; rows without noise; an argument of which nothing depends."""
    with pytest.raises(
        ModelError, match=f"no maximum in '{name}': it does not fall on the way from .* {end}"
    ) as caught:
        ps.maximize_marginal_likelihood(groups, data, {name: 1.0}, num_samples=2, seed=0)
    assert caught.value.posterior.approximation is not None


def test_no_maximum_at_infinity():
    """The precision of rows without noise."""

    def model(y, precision):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("obs", dist.Normal(mean, precision**-0.5), obs=y)

    with pytest.raises(ModelError, match=r"no maximum in 'precision': .* to infinity, so that the value runs away"):
        ps.maximize_marginal_likelihood(model, {"y": torch.ones(4, dtype=torch.float64)}, {"precision": 1.0}, seed=0)


def test_best_so_far_where_fits_run_out(caplog):
    with caplog.at_level(logging.WARNING, "pyro_scale"):
        found = ps.maximize_marginal_likelihood(
            linear, LINEAR, {"prior_scale": 0.1, "noise": 1.0}, max_fits=15, num_samples=2, seed=0
        )
    assert not found.converged and found.num_fits <= 15
    assert found.log_marginal_likelihood > found.log_marginal_likelihood_at_start
    assert "not at its maximum after" in caplog.text and "Raise max_fits" in caplog.text


@pytest.mark.parametrize(
    ("start", "settings", "message"),
    [
        ({"noise": -1.0}, {}, "start: noise is -1.0; it must be a positive finite number"),
        ({"noise": 0}, {}, "start: noise is 0; it must be a positive finite number"),
        ({"noise": math.nan}, {}, "start: noise is nan; it must be a positive"),
        ({"noise": math.inf}, {}, "start: noise is inf; it must be a positive"),
        ({"noise": True}, {}, "start: noise is True; it must be a positive"),
        ({"noise": "1"}, {}, "start: noise is '1'; it must be a positive"),
        ({"sigma": 1.0}, {}, "start names 'sigma', which is no argument of the model; it takes 'x', 'y', "),
        ({3: 1.0}, {}, "start names 3, which is no argument"),
        ({}, {}, "start is {}; it must be a dict, argument of the model -> value"),
        (["noise"], {}, r"start is \['noise'\]; it must be a dict"),
        ({"y": 1.0}, {}, "'y' is in both data and constants"),
        ({"noise": 1.0}, {"constants": {"noise": 1.0}}, "'noise' is in both start and constants"),
        ({"noise": 1.0}, {"method": "vi_diag"}, "method is 'vi_diag', which has no marginal likelihood; it must"),
        ({"noise": 1.0}, {"method": DenseLaplace(temperature=0.5)}, "DenseLaplace at temperature 0.5; the evidence is"),
        ({"noise": 1.0}, {"method": "laplace"}, "method is 'laplace'; it must be one of"),
        ({"noise": 1.0}, {"max_fits": 5}, "max_fits is 5; it must be a whole number of at least 6"),
        ({"noise": 1.0}, {"num_samples": 0}, "num_samples is 0"),
        ({"noise": 1.0}, {"seed": -1}, "seed is -1"),
    ],
)  # fmt: skip
def test_refusals(start, settings, message):
    with pytest.raises(ArgumentError, match=message):
        ps.maximize_marginal_likelihood(linear, LINEAR, start, **settings)


def test_a_fit_that_fails_on_the_way_says_where():
    def model(y, scale):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("obs", dist.Normal(mean, scale if scale < 2 else scale * math.nan), obs=y)

    with pytest.raises(ModelError, match=r"A fit failed at scale=[0-9.e+]+, on the way to the maximum: ") as caught:
        ps.maximize_marginal_likelihood(model, {"y": 30 * normals(5, 9)}, {"scale": 1.0}, seed=0)
    assert caught.value.posterior.log_marginal_likelihood is not None
