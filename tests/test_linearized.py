"""Predictions of the linearised model against closed forms and numerical integration."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from gaussian_cases import covariance_of, dense, diagonal, numbers
from posterior_cases import NOISE, exact_posterior, exact_regression, regression, spread_posterior
from torch import Tensor

from pyro_scale.errors import ArgumentError, DataError
from pyro_scale.gaussians import DenseGaussian, DiagonalGaussian
from pyro_scale.posterior import Posterior

N, DIM, CLASSES = 12, 3, 3
X, X_NEW = numbers(N, DIM, seed=0), numbers(6, DIM, seed=1)
Y, Y_NEW = X[:, 0] - X[:, 1], numbers(6, seed=2)
LABELS, LABELS_NEW = torch.arange(N) % 2, torch.arange(6) % 2
CLASS, CLASS_NEW = torch.arange(N) % 3, torch.arange(6) % 3
NODES, WEIGHTS = (torch.from_numpy(part) for part in np.polynomial.hermite_e.hermegauss(80))
WEIGHTS = WEIGHTS / WEIGHTS.sum()  # of the standard normal distribution
SIZE = 20_000


def prior(*shape: int) -> Any:
    return dist.Normal(0.0, 1.0).expand(shape).to_event(len(shape))


def classifier(x: Tensor, y: Tensor | None = None) -> None:
    w = pyro.sample("w", prior(DIM))
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.Bernoulli(logits=x @ w), obs=y)


def classes(x: Tensor, y: Tensor | None = None) -> None:
    w = pyro.sample("w", prior(DIM, CLASSES))
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.Categorical(logits=x @ w), obs=y)


def counts(x: Tensor, y: Tensor | None = None) -> None:
    w = pyro.sample("w", prior(DIM))
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.Poisson((x @ w).exp()), obs=y)


def noisy(x: Tensor, y: Tensor | None = None) -> None:
    w = pyro.sample("w", prior(DIM))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.Normal(x @ w, sigma), obs=y)


def vectors(x: Tensor, y: Tensor | None = None) -> None:
    """Two numbers a row, whose noise is not the same."""
    w = pyro.sample("w", prior(DIM, 2))
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.Normal(x @ w, torch.tensor([0.3, 0.7], dtype=x.dtype)).to_event(1), obs=y)


NOISES = torch.tensor([[0.5, 0.2], [0.2, 0.4]], dtype=torch.float64)


def correlated(x: Tensor, y: Tensor | None = None) -> None:
    w = pyro.sample("w", prior(DIM, 2))
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.MultivariateNormal(x @ w, NOISES.to(x)), obs=y)


def posterior_at(model: Any, data: dict[str, Tensor], structure: Any = dense) -> tuple[Posterior, Any]:
    """A normal approximation that is none, of a model whose posterior is not looked at."""
    posterior = spread_posterior(model, data, num_chains=1)
    compiled = posterior.compiled
    assert compiled is not None
    mean = {name: numbers(*shape, seed=len(shape)) / 2 for name, shape in compiled.latent.items()}
    posterior.approximation = gaussian = structure(mean)
    return posterior, gaussian


def law_of_linear(gaussian: Any) -> tuple[Tensor, Tensor]:
    """Mean and variance of x @ w at the new rows."""
    return X_NEW @ gaussian.mean["w"], torch.einsum("ni,ij,nj->n", X_NEW, covariance_of(gaussian), X_NEW)


def test_of_a_linear_normal_model_it_is_the_exact_predictive_distribution() -> None:
    posterior = exact_posterior(X, Y, num_chains=1, num_samples=SIZE)
    mean, covariance = exact_regression(X, Y)
    posterior.approximation = DenseGaussian({"w": mean}, torch.linalg.cholesky(covariance))
    found = posterior.predict({"x": X_NEW, "y": Y_NEW}, linearized=True)
    epistemic = torch.einsum("ni,ij,nj->n", X_NEW, covariance, X_NEW)
    torch.testing.assert_close(found.mean["obs"], X_NEW @ mean)
    torch.testing.assert_close(found.epistemic["obs"], epistemic)
    torch.testing.assert_close(found.aleatoric["obs"], torch.full((6,), NOISE**2).double())
    torch.testing.assert_close(found.total["obs"], epistemic + NOISE**2)
    exact = dist.Normal(X_NEW @ mean, (NOISE**2 + epistemic).sqrt())
    torch.testing.assert_close(found.log_predictive_density["obs"], exact.log_prob(Y_NEW))
    sampled = posterior.predict({"x": X_NEW, "y": Y_NEW}, keep_draws=False)
    for name in ("mean", "sd", "total", "log_predictive_density"):
        torch.testing.assert_close(getattr(sampled, name)["obs"], getattr(found, name)["obs"], rtol=0.03, atol=0.02)
    draws = found.draws["obs"][0]  # 20,000: beyond 5 standard errors with probability 6e-7 each
    assert ((draws.mean(0) - exact.mean).abs() < 5 * exact.stddev / math.sqrt(SIZE)).all()
    assert ((draws.std(0) / exact.stddev - 1).abs() < 5 / math.sqrt(2 * SIZE)).all()


@pytest.mark.parametrize("model", [vectors, correlated])
def test_vectors_add_their_noise(model: Any) -> None:
    y = numbers(6, 2, seed=3)
    posterior, gaussian = posterior_at(model, {"x": X, "y": X[:, :2]})
    found = posterior.predict({"x": X_NEW, "y": y}, linearized=True, num_samples=10)
    own = NOISES if model is correlated else torch.diag(torch.tensor([0.3, 0.7], dtype=torch.float64)).square()
    rows = torch.stack([torch.kron(row, torch.eye(2, dtype=torch.float64)) for row in X_NEW])  # (n, 2, d)
    function = rows @ covariance_of(gaussian) @ rows.mT
    exact = dist.MultivariateNormal(X_NEW @ gaussian.mean["w"], function + own)
    torch.testing.assert_close(found.mean["obs"], exact.mean)
    torch.testing.assert_close(found.total["obs"], exact.variance)
    torch.testing.assert_close(found.aleatoric["obs"], own.diagonal().expand(6, 2))
    torch.testing.assert_close(found.log_predictive_density["obs"], exact.log_prob(y))
    alone = posterior.predict({"x": X_NEW, "y": y}, linearized=True, covariance="diagonal", num_samples=10)
    torch.testing.assert_close(alone.total["obs"], exact.variance)
    each = dist.MultivariateNormal(exact.mean, torch.diag_embed(function.diagonal(dim1=1, dim2=2)) + own)
    torch.testing.assert_close(alone.log_predictive_density["obs"], each.log_prob(y))
    assert alone.draws["obs"].shape == (1, 10, 6, 2)


def test_noise_that_is_not_known() -> None:
    """Its square is log-normal; the density by integration. 20,000 draws: within 5 standard errors."""
    posterior, gaussian = posterior_at(noisy, {"x": X, "y": Y}, diagonal)
    assert isinstance(gaussian, DiagonalGaussian)
    found = posterior.predict({"x": X_NEW, "y": Y_NEW}, linearized=True, num_samples=SIZE)
    log_noise, sd = gaussian.mean["sigma"], gaussian.sd["sigma"]
    mean, variance = X_NEW @ gaussian.mean["w"], X_NEW.square() @ gaussian.sd["w"].square()
    torch.testing.assert_close(found.mean["obs"], mean)
    torch.testing.assert_close(found.epistemic["obs"], variance)
    torch.testing.assert_close(found.aleatoric["obs"], (2 * log_noise + 2 * sd**2).exp().expand(6))
    torch.testing.assert_close(found.function_mean["obs"]["scale"], log_noise.expand(6))
    noise = (log_noise + sd * NODES).exp()
    density = dist.Normal(mean[:, None], (variance[:, None] + noise**2).sqrt()).log_prob(Y_NEW[:, None]).exp()
    error = (found.log_predictive_density["obs"] - (density @ WEIGHTS).log()).abs()
    print("log density off by", error.tolist())
    # of the mean of densities whose relative sd is that of normal densities at drawn parameters
    draws = torch.distributions.Normal(mean[:, None], variance[:, None].sqrt()).icdf(torch.linspace(0.001, 0.999, 999))
    each = dist.Normal(draws[..., None], noise).log_prob(Y_NEW[:, None, None]).exp() @ WEIGHTS
    square = dist.Normal(draws[..., None], noise).log_prob(Y_NEW[:, None, None]).exp().square() @ WEIGHTS
    relative = (square.mean(1) / each.mean(1) ** 2 - 1).sqrt()
    assert (error < 5 * relative / math.sqrt(SIZE)).all()


def test_probabilities_by_draws_against_integration() -> None:
    """20,000 draws: within 5 standard errors of an average of numbers between 0 and 1, and log 2."""
    posterior, gaussian = posterior_at(classifier, {"x": X, "y": LABELS})
    found = posterior.predict({"x": X_NEW, "y": LABELS_NEW}, linearized=True, num_samples=SIZE)
    mean, variance = law_of_linear(gaussian)
    each = (mean[:, None] + variance.sqrt()[:, None] * NODES).sigmoid()
    probability = each @ WEIGHTS
    entropy = dist.Bernoulli(probs=each).entropy() @ WEIGHTS
    total = dist.Bernoulli(probs=probability).entropy()
    limit = 5 * ((each**2) @ WEIGHTS - probability**2).sqrt() / math.sqrt(SIZE)
    print("probabilities off by", (found.mean["obs"] - probability).abs().tolist(), "limit", limit.tolist())
    assert ((found.mean["obs"] - probability).abs() < limit).all()
    assert (found.aleatoric["obs"] - entropy).abs().max() < 5 * 0.35 / math.sqrt(SIZE)
    assert (found.total["obs"] - total).abs().max() < 5 * 1.5 / math.sqrt(SIZE)
    torch.testing.assert_close(found.total["obs"], found.aleatoric["obs"] + found.epistemic["obs"])
    right = torch.where(LABELS_NEW.bool(), found.mean["obs"], 1 - found.mean["obs"])
    torch.testing.assert_close(found.log_predictive_density["obs"], right.log())
    assert ((found.draws["obs"].mean((0, 1)) - probability).abs() < 5 * 0.5 / math.sqrt(SIZE)).all()


def test_probit_by_formula_and_near_the_integral() -> None:
    """MacKay's approximation is within 0.02 of the integral, whatever the variance."""
    posterior, gaussian = posterior_at(classifier, {"x": X, "y": LABELS})
    found = posterior.predict({"x": X_NEW, "y": LABELS_NEW}, linearized=True, link="probit", num_samples=50)
    mean, variance = law_of_linear(gaussian)
    expected = (mean / (1 + math.pi * variance / 8).sqrt()).sigmoid()
    torch.testing.assert_close(found.mean["obs"], expected)
    integral = (mean[:, None] + variance.sqrt()[:, None] * NODES).sigmoid() @ WEIGHTS
    assert (expected - integral).abs().max() < 0.02
    torch.testing.assert_close(found.total["obs"], dist.Bernoulli(probs=expected).entropy())
    assert found.aleatoric == found.epistemic == {}
    torch.testing.assert_close(
        found.log_predictive_density["obs"], dist.Bernoulli(probs=expected).log_prob(LABELS_NEW.double())
    )
    assert set(found.draws["obs"].unique().tolist()) <= {0.0, 1.0}
    assert found.draws["obs"].shape == (1, 50, 6)


def test_classes_by_draws_and_probit() -> None:
    """Draws against 200,000 of the weights themselves, for which the model is linear: standard errors of both."""
    posterior, gaussian = posterior_at(classes, {"x": X, "y": CLASS})
    found = posterior.predict({"x": X_NEW, "y": CLASS_NEW}, linearized=True, num_samples=SIZE)
    factor = torch.linalg.cholesky(covariance_of(gaussian))
    weights = gaussian.mean["w"].reshape(-1) + numbers(200_000, 9, seed=4) @ factor.T
    each = (X_NEW @ weights.reshape(-1, DIM, CLASSES)).softmax(-1)
    error = (found.mean["obs"] - each.mean(0)).abs() / (each.std(0) * math.sqrt(1 / SIZE + 1 / 200_000))
    print("largest error in standard errors", float(error.max()))
    assert error.max() < 5
    entropy = -torch.xlogy(each, each).sum(-1)
    error = (found.aleatoric["obs"] - entropy.mean(0)).abs() / (entropy.std(0) * math.sqrt(1 / SIZE + 1 / 200_000))
    assert error.max() < 5
    probit = posterior.predict({"x": X_NEW, "y": CLASS_NEW}, linearized=True, link="probit", keep_draws=False)
    rows = torch.stack([torch.kron(row, torch.eye(3, dtype=torch.float64)) for row in X_NEW])
    variances = (rows @ covariance_of(gaussian) @ rows.mT).diagonal(dim1=1, dim2=2)
    expected = (X_NEW @ gaussian.mean["w"] / (1 + math.pi * variances / 8).sqrt()).softmax(-1)
    torch.testing.assert_close(probit.mean["obs"], expected)
    density = expected.gather(1, CLASS_NEW[:, None]).squeeze(1).log()
    torch.testing.assert_close(probit.log_predictive_density["obs"], density)
    assert probit.draws == {}


def test_counts_by_draws() -> None:
    """The rate is log-normal. 20,000 draws: within 5 standard errors, and 4 % of a variance of long tails."""
    posterior, gaussian = posterior_at(counts, {"x": X, "y": LABELS})
    gaussian = DiagonalGaussian(gaussian.mean, {"w": torch.full((DIM,), 0.1, dtype=torch.float64)})
    posterior.approximation = gaussian
    found = posterior.predict({"x": X_NEW}, linearized=True, num_samples=SIZE)
    mean, variance = law_of_linear(gaussian)
    rate = (mean + variance / 2).exp()
    spread = rate**2 * variance.expm1()
    assert ((found.mean["obs"] - rate).abs() < 5 * (spread / SIZE).sqrt()).all()
    torch.testing.assert_close(found.epistemic["obs"], spread, rtol=0.1, atol=0)
    torch.testing.assert_close(found.aleatoric["obs"], found.mean["obs"])
    assert found.log_predictive_density == {}


def test_a_covariance_that_is_singular() -> None:
    """Of classes whose logits are the same number twice."""

    def same(x: Tensor, y: Tensor | None = None) -> None:
        w = pyro.sample("w", prior(DIM))
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Categorical(logits=torch.stack([x @ w, x @ w, 0 * (x @ w)], -1)), obs=y)

    posterior, _ = posterior_at(same, {"x": X, "y": CLASS})
    found = posterior.predict({"x": torch.cat([X_NEW, torch.zeros(1, DIM)])}, linearized=True, num_samples=100)
    assert found.mean["obs"].isfinite().all()
    torch.testing.assert_close(found.mean["obs"][:, 0], found.mean["obs"][:, 1])
    torch.testing.assert_close(found.epistemic["obs"][-1], torch.tensor(0.0).double(), atol=1e-12, rtol=0)


def test_a_weighted_density() -> None:
    """A mask leaves a row out, so that it has no density."""

    def masked(x: Tensor, y: Tensor | None = None) -> None:
        w = pyro.sample("w", prior(DIM))
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(x @ w, 1.0).mask(x[:, 0] > 0), obs=y)

    posterior, _ = posterior_at(masked, {"x": X, "y": Y})
    found = posterior.predict({"x": X_NEW, "y": Y_NEW}, linearized=True, num_samples=50)
    assert torch.equal(found.log_predictive_density["obs"] == 0, X_NEW[:, 0] <= 0)


def test_seeds_and_the_rows_of_the_fit() -> None:
    posterior, _ = posterior_at(classifier, {"x": X, "y": LABELS})
    before = torch.get_rng_state()
    one, again, other = (posterior.predict(linearized=True, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.draws["obs"], again.draws["obs"])
    assert not torch.equal(one.mean["obs"], other.mean["obs"])
    assert one.draws["obs"].shape == (1, 3, N)  # as many as the posterior has
    assert one.log_predictive_density["obs"].shape == (N,)
    with pytest.raises(DataError, match="Site 'obs' observes 7"):
        posterior.predict({"x": X_NEW, "y": torch.full((6,), 7)}, linearized=True)


def test_a_probit_link_of_normal_sites_alone_is_refused() -> None:
    posterior, _ = posterior_at(regression, {"x": X, "y": Y})
    with pytest.raises(
        ArgumentError, match=r"^link is 'probit', .* 'obs' is normal, and has a closed form. Leave link out.$"
    ):
        posterior.predict({"x": X_NEW}, linearized=True, link="probit")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no approximation": (
        {"linearized": True},
        "linearized=True needs a normal approximation .* by hand has draws alone",
    ),
    "a link of draws": ({"link": "probit"}, "link is 'probit', which linearised predictions alone have: add"),
    "a covariance of draws": ({"covariance": "full"}, "covariance is 'full', which linearised predictions alone have"),
    "another link": (
        {"linearized": True, "link": "logit"},
        "link is 'logit'; it must be one of 'monte_carlo', 'probit'",
    ),
    "another covariance": (
        {"linearized": True, "covariance": "none"},
        "covariance is 'none'; it must be one of 'full'",
    ),
    "no draws": ({"linearized": True, "num_samples": 0}, "num_samples is 0; it must be a whole number of at least 1"),
    "a seed": ({"linearized": True, "seed": -1}, "seed is -1"),
    "counts by a probit": (
        {"linearized": True, "link": "probit"},
        "probit', which is for Bernoulli .* 'obs' is Poisson",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str) -> None:
    options, message = REFUSED[name]
    posterior, _ = posterior_at(counts, {"x": X, "y": LABELS})
    if name == "no approximation":
        posterior.approximation = None
    with pytest.raises(ArgumentError, match=message):
        posterior.predict({"x": X_NEW}, **options)


def test_without_draws_memory_does_not_grow() -> None:
    posterior, _ = posterior_at(regression, {"x": X, "y": Y})
    for linearized in (False, True):
        kept = posterior.predict({"x": X_NEW, "y": Y_NEW}, linearized=linearized)
        found = posterior.predict({"x": X_NEW, "y": Y_NEW}, linearized=linearized, keep_draws=False)
        assert found.draws == {} and kept.draws.keys() == {"obs"}
        for name in ("mean", "sd", "epistemic", "aleatoric", "log_predictive_density"):
            assert torch.equal(getattr(found, name)["obs"], getattr(kept, name)["obs"])
