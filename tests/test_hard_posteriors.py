"""Posteriors that are improper, unidentified, without curvature or with a mode on a boundary, as a user meets them.

Runs are tuned. Either draws are right, or a message names the direction or the site.
"""

from __future__ import annotations

import re
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from small_models import numbers
from torch import Tensor

import pyro_scale as ps
from pyro_scale.posterior import Posterior

X = numbers(200, 3, seed=5)
ZEROS = torch.zeros(20).double()


def infer(model: Any, data: Any, **options: Any) -> Posterior:
    chosen = {"batch_size": 20, "num_samples": 100, "warmup_steps": 600, "thinning": 10, "seed": 0}
    return ps.infer(model, data, **{**chosen, "progress": False, "jit_compile": False, **options})


def flat(x: Tensor, y: Tensor) -> None:
    w = pyro.sample("w", dist.ImproperUniform(constraints.real, (), (x.shape[1],)))
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.Normal(x @ w, 1.0), obs=y)


def flat_logistic(x: Tensor, y: Tensor) -> None:
    w = pyro.sample("w", dist.ImproperUniform(constraints.real, (), (x.shape[1],)))
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.Bernoulli(logits=x @ w), obs=y)


def collinear(x: Tensor) -> dict[str, Tensor]:
    x = x.clone()
    x[:, 2] = x[:, 0]
    return {"x": x, "y": x[:, 1] + numbers(len(x), seed=7)}


def test_equal_covariates_are_named_and_the_rest_is_right(caplog: pytest.LogCaptureFixture) -> None:
    """The sum of the two is identified, and so is the third: by least squares."""
    data = collinear(X)
    draws = infer(flat, data).draws["w"].flatten(0, 1)
    assert re.search(r"no mode .* along 'w\[[02]\]', 'w\[[02]\]'\.", caplog.text)
    assert re.search(r"R-hat of w\[[02]\] is", caplog.text)
    known = torch.stack([draws[:, 1], draws[:, 0] + draws[:, 2]], 1)
    two = data["x"][:, [1, 0]]
    mean, sd = torch.linalg.lstsq(two, data["y"]).solution, torch.linalg.inv(two.T @ two).diagonal().sqrt()
    print(((known.mean(0) - mean) / sd).tolist(), (known.std(0) / sd).tolist())
    assert float(((known.mean(0) - mean) / sd).abs().max()) < 0.3
    assert torch.allclose(known.std(0) / sd, torch.ones(2).double(), atol=0.25)


def test_separable_classes_are_named(caplog: pytest.LogCaptureFixture) -> None:
    posterior = infer(flat_logistic, {"x": X, "y": (X[:, 0] > 0).double()})
    said = re.search(r"no mode .* along (.*)\. The posterior may", caplog.text)
    assert said is not None and "'w[0]'" in said[1]
    assert "separable classes without a prior" in caplog.text
    assert not posterior.health
    assert bool(posterior.draws["w"].isfinite().all())


def test_beyond_matrices_the_verdict_names_them(caplog: pytest.LogCaptureFixture) -> None:
    infer(flat, collinear(numbers(640, 310, seed=6)), num_samples=50, warmup_steps=300)
    assert re.search(r"R-hat of w\[[02]\] is", caplog.text)


def test_a_mode_on_a_boundary_is_one_in_the_unconstrained_space() -> None:
    """No success in 20 trials: Beta(1, 21), of which mean and sd are nearly the same; about 150 effective draws."""

    def rate(y: Tensor) -> None:
        p = pyro.sample("p", dist.Uniform(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("obs", dist.Bernoulli(p), obs=y)

    p = infer(rate, ZEROS, batch_size=None, num_samples=200).draws["p"]
    exact = dist.Beta(1.0, 21.0)
    print(float(p.mean() / exact.mean), float(p.std() / exact.stddev))
    assert float(p.mean()) == pytest.approx(float(exact.mean), rel=0.2)
    assert float(p.std()) == pytest.approx(float(exact.stddev), rel=0.25)


def test_a_mode_without_curvature_is_told_and_its_draws_are_right(caplog: pytest.LogCaptureFixture) -> None:
    """Of density exp(-20 a**4) the variance is gamma(3/4) / gamma(1/4) / sqrt(20)."""

    def quartic(y: Tensor) -> None:
        a = pyro.sample("a", dist.ImproperUniform(constraints.real, (), ()))
        with pyro.plate("data", len(y)):
            pyro.factor("likelihood", -(a**4) + 0 * y)

    a = infer(quartic, ZEROS, batch_size=None, num_samples=200).draws["a"]
    assert "no mode above the starts: it is flat, or rises without end, along 'a'." in caplog.text
    three, one = torch.tensor([0.75, 0.25]).lgamma().exp()
    print(float(a.std()))
    assert float(a.std()) == pytest.approx(float(three / one / 20**0.5) ** 0.5, rel=0.15)


def test_a_density_that_rises_to_a_boundary_is_refused_by_name(caplog: pytest.LogCaptureFixture) -> None:
    """Of observations that are all 0 a scale without a prior goes to 0."""

    def scale(y: Tensor) -> None:
        s = pyro.sample("s", dist.ImproperUniform(constraints.positive, (), ()))
        with pyro.plate("data", len(y)):
            pyro.sample("obs", dist.Normal(0.0, s), obs=y)

    with pytest.raises(ps.errors.PyroScaleError) as caught:
        infer(scale, ZEROS, batch_size=None)
    print(caught.value)
    assert "along 's'" in caplog.text or "'s'" in str(caught.value)
