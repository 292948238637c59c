"""The law of the outputs under the linearised model, against Jacobians by hand and dense covariances."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from gaussian_cases import STRUCTURES, covariance_of, dense, diagonal, numbers
from posterior_cases import spread_posterior
from pyro.distributions import distribution
from torch import Tensor, nn

import pyro_scale as ps
from pyro_scale import draws, tree
from pyro_scale.errors import ModelError
from pyro_scale.linear import functions
from pyro_scale.posterior import Posterior
from pyro_scale.types import Position
from pyro_scale.unbounded import at_unbounded, logits_as_written, natural, without_bounds

N, INPUTS, HIDDEN = 11, 3, 4
X = numbers(N, INPUTS, seed=0)
X_NEW = numbers(7, INPUTS, seed=1)


def network(outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(INPUTS, HIDDEN, device="meta"), nn.Tanh(), nn.Linear(HIDDEN, outputs, device="meta"))


def by_hand(position: Position, x: Tensor) -> Tensor:
    hidden = torch.tanh(x @ position["0.weight"].T + position["0.bias"])
    return hidden @ position["2.weight"].T + position["2.bias"]


LIKELIHOODS: dict[int, tuple[Any, Tensor]] = {
    1: (lambda out: dist.Bernoulli(logits=out.squeeze(-1)), torch.arange(N) % 2),
    2: (lambda out: dist.Normal(out, 0.3).to_event(1), numbers(N, 2, seed=2)),
    7: (lambda out: dist.Categorical(logits=out), torch.arange(N) % 7),
}
PARAMETER = {1: "logits", 2: "loc", 7: "logits"}


def fitted(outputs: int) -> Posterior:
    likelihood, y = LIKELIHOODS[outputs]
    model = ps.bayesian(network(outputs), prior=dist.Normal(0.0, 1.0), likelihood=likelihood)
    return spread_posterior(model, {"x": X, "y": y}, num_chains=1, num_samples=4)


@pytest.fixture(scope="module")
def posteriors() -> dict[int, Posterior]:
    return {outputs: fitted(outputs) for outputs in LIKELIHOODS}


def position_of(posterior: Posterior) -> Position:
    return {name: value[0, 0].double() for name, value in posterior.draws.items()}


def jacobian(position: Position, row: Tensor) -> Tensor:
    """By finite reverse mode of plain torch, in the order of `tree.ravel`."""
    shapes = tree.shapes(position)
    found: Any = torch.autograd.functional.jacobian(
        lambda vector: by_hand(tree.unravel(vector, shapes), row), tree.ravel(position)
    )
    return found


@pytest.mark.parametrize("outputs", LIKELIHOODS)
@pytest.mark.parametrize("structure", STRUCTURES, ids=lambda structure: structure.__name__)
def test_every_structure_against_its_dense_twin(structure: Any, outputs: int, posteriors: dict[int, Posterior]) -> None:
    posterior = posteriors[outputs]
    position = position_of(posterior)
    posterior.approximation = gaussian = structure(position)
    covariance = covariance_of(gaussian)
    found = posterior.predict({"x": X_NEW}, linearized=True, num_samples=3)
    rows = torch.stack([jacobian(position, row) for row in X_NEW])  # (n, outputs, d)
    expected = rows @ covariance @ rows.mT
    torch.testing.assert_close(found.function_covariance["obs"], expected, rtol=1e-9, atol=1e-11)
    mean = by_hand(position, X_NEW)
    parameter = PARAMETER[outputs]
    shape = (7,) if outputs == 1 else (7, outputs)
    torch.testing.assert_close(found.function_mean["obs"], {parameter: mean.reshape(shape)})
    variances = expected.diagonal(dim1=1, dim2=2).reshape(shape)
    torch.testing.assert_close(found.function_variance["obs"], {parameter: variances}, rtol=1e-9, atol=1e-11)
    alone = posterior.predict({"x": X_NEW}, linearized=True, covariance="diagonal", num_samples=3)
    torch.testing.assert_close(alone.function_variance["obs"], {parameter: variances}, rtol=1e-9, atol=1e-11)
    assert alone.function_covariance == {}


@pytest.mark.parametrize("outputs", LIKELIHOODS)
def test_blocks_of_rows_make_no_difference(
    outputs: int, posteriors: dict[int, Posterior], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five rows at a time, and two at the end; one at a time."""
    posterior = posteriors[outputs]
    compiled = posterior.compiled
    assert compiled is not None
    gaussian = dense(position_of(posterior))
    expected = functions(compiled, gaussian)["obs"].covariance
    for rows in (5, 1):
        monkeypatch.setattr(draws, "ROW_NUMBERS", rows * outputs * tree.size(gaussian.mean))
        torch.testing.assert_close(functions(compiled, gaussian)["obs"].covariance, expected)


def test_bounds_of_latent_and_of_output(posteriors: dict[int, Posterior]) -> None:
    """Both scales are moved by their logarithms: a slope of one, and of `x`, in them."""

    def model(x: Tensor, y: Tensor | None = None) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(INPUTS, dtype=x.dtype), 1.0).to_event(1))
        sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(x @ w, sigma * (x @ w).exp()), obs=y)

    posterior = spread_posterior(model, {"x": X, "y": X[:, 0]}, num_chains=1)
    position = {"w": numbers(INPUTS, seed=5), "sigma": torch.tensor(-0.4, dtype=torch.float64)}
    posterior.approximation = dense(position)
    found = posterior.predict({"x": X_NEW}, linearized=True)
    mean = X_NEW @ position["w"]
    torch.testing.assert_close(found.function_mean["obs"], {"loc": mean, "scale": mean - 0.4})
    rows = torch.stack([torch.cat([X_NEW, torch.zeros(7, 1)], 1), torch.cat([X_NEW, torch.ones(7, 1)], 1)], 1)
    torch.testing.assert_close(
        found.function_covariance["obs"], rows @ covariance_of(posterior.approximation) @ rows.mT
    )


FAMILIES: dict[str, tuple[Any, str, Any]] = {
    "probabilities": (lambda f: dist.Bernoulli(probs=f.sigmoid()), "logits", 1.0),
    "counts": (lambda f: dist.Poisson(f.exp()), "rate", 1.0),
    "negative binomial": (lambda f: dist.NegativeBinomial(3.0, logits=f), "logits", 1.0),
    "binomial": (lambda f: dist.Binomial(5, probs=f.sigmoid()), "logits", 1.0),
    "student t": (lambda f: dist.StudentT(4.0, f, 1.0), "loc", 1.0),
    "beta": (lambda f: dist.Beta(f.exp(), 2.0), "concentration1", 0.3),
    "gamma": (lambda f: dist.Gamma(2.0, f.exp()), "rate", 1.0),
    "zero-inflated": (lambda f: dist.ZeroInflatedPoisson(torch.exp(f), gate=0.2 * torch.ones_like(f)), "rate", 1.0),
    "von mises": (lambda f: dist.VonMises(f, 2.0), "loc", 1.0),
    "masked": (lambda f: dist.Normal(f, 1.0).mask(torch.ones_like(f).bool()), "loc", 1.0),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_families(name: str) -> None:
    """Written so that the number without bounds is x @ w, whose law is known."""
    likelihood, parameter, y = FAMILIES[name]

    def model(x: Tensor, y: Tensor | None = None) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(INPUTS, dtype=x.dtype), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("obs", likelihood(x @ w), obs=y)

    posterior = spread_posterior(model, {"x": X, "y": torch.full((N,), y).double()}, num_chains=1)
    posterior.approximation = dense({"w": numbers(INPUTS, seed=6) / 2})
    found = posterior.predict({"x": X_NEW, "y": torch.full((7,), y).double()}, linearized=True, num_samples=20)
    expected = X_NEW @ posterior.approximation.mean["w"]
    torch.testing.assert_close(found.function_mean["obs"][parameter], expected)
    variance = torch.einsum("ni,ij,nj->n", X_NEW, covariance_of(posterior.approximation), X_NEW)
    torch.testing.assert_close(found.function_variance["obs"][parameter], variance)
    for other in found.function_variance["obs"].keys() - {parameter}:  # Beta keeps both in one tensor
        assert found.function_variance["obs"][other].eq(0).all()
    assert found.draws["obs"].shape == (1, 20, 7)
    assert found.log_predictive_density["obs"].isfinite().all()


def test_ordered_classes_that_cannot_be_vectorised() -> None:
    def model(x: Tensor, y: Tensor | None = None) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(INPUTS, dtype=x.dtype), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.OrderedLogistic(x @ w, torch.tensor([-1.0, 1.0], dtype=x.dtype)), obs=y)

    posterior = spread_posterior(model, {"x": X, "y": torch.arange(N) % 3}, num_chains=1)
    posterior.approximation = dense({"w": numbers(INPUTS, seed=7)})
    found = posterior.predict({"x": X_NEW}, linearized=True, num_samples=5)
    expected = X_NEW @ posterior.approximation.mean["w"]
    torch.testing.assert_close(found.function_mean["obs"], {"predictor": expected})
    assert found.mean["obs"].shape == (7, 3)
    torch.testing.assert_close(found.mean["obs"].sum(1), torch.ones(7).double())


def test_rows_along_the_second_axis() -> None:
    """Two plates: the site's values are `(2, n)`."""

    def model(x: Tensor, y: Tensor | None = None) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(INPUTS, 2, dtype=x.dtype), 1.0).to_event(2))
        with pyro.plate("kinds", 2, dim=-2), pyro.plate("data", len(x), dim=-1):
            pyro.sample("obs", dist.Normal((x @ w).T, 0.5), obs=None if y is None else y.T)

    posterior = spread_posterior(model, {"x": X, "y": X[:, :2]}, num_chains=1)
    posterior.approximation = gaussian = diagonal({"w": numbers(INPUTS, 2, seed=8)})
    found = posterior.predict({"x": X_NEW, "y": X_NEW[:, :2]}, linearized=True, num_samples=4)
    torch.testing.assert_close(found.function_mean["obs"], {"loc": (X_NEW @ gaussian.mean["w"]).T})
    variance = X_NEW.square() @ gaussian.sd["w"].square()  # type: ignore[attr-defined]
    torch.testing.assert_close(found.function_variance["obs"], {"loc": variance.T})
    assert found.draws["obs"].shape == (1, 4, 2, 7)
    torch.testing.assert_close(found.total["obs"], variance.T + 0.25)
    each = dist.Normal(X_NEW @ gaussian.mean["w"], (variance + 0.25).sqrt()).log_prob(X_NEW[:, :2])
    torch.testing.assert_close(found.log_predictive_density["obs"], each.sum(1))


def test_a_model_that_closes_over_its_data() -> None:
    y = X[:, 0]

    def model() -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(INPUTS, dtype=X.dtype), 1.0).to_event(1))
        with pyro.plate("data", N) as rows:
            pyro.sample("obs", dist.Normal(X[rows] @ w, 0.5), obs=y[rows])

    posterior = spread_posterior(model, {}, num_chains=1, dtype=torch.float64)
    posterior.approximation = dense({"w": numbers(INPUTS, seed=9)})
    found = posterior.predict(linearized=True)
    torch.testing.assert_close(found.function_mean["obs"], {"loc": X @ posterior.approximation.mean["w"]})
    assert found.log_predictive_density["obs"].shape == (N,)


def test_single_precision(posteriors: dict[int, Posterior]) -> None:
    likelihood, y = LIKELIHOODS[7]
    model = ps.bayesian(network(7), prior=dist.Normal(0.0, 1.0), likelihood=likelihood)
    single = spread_posterior(model, {"x": X.float(), "y": y}, num_chains=1)
    position = position_of(posteriors[7])
    single.approximation = diagonal({name: leaf.float() for name, leaf in position.items()})
    single.approximation = type(single.approximation)(
        single.approximation.mean,
        tree.to(single.approximation.sd, torch.float32),  # type: ignore[attr-defined, call-arg]
    )
    posteriors[7].approximation = diagonal(position)
    found = single.predict({"x": X_NEW.float()}, linearized=True, link="probit")
    expected = posteriors[7].predict({"x": X_NEW}, linearized=True, link="probit")
    assert found.mean["obs"].dtype == found.function_covariance["obs"].dtype == torch.float32
    torch.testing.assert_close(found.mean["obs"].double(), expected.mean["obs"], rtol=1e-4, atol=1e-5)


def centred(x: Tensor, y: Tensor | None = None) -> None:
    w = pyro.sample("w", dist.Normal(torch.zeros(INPUTS, dtype=x.dtype), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.Normal((x - x.mean(0)) @ w, 1.0), obs=y)


def local(x: Tensor, y: Tensor | None = None) -> None:
    w = pyro.sample("w", dist.Normal(torch.zeros(INPUTS, dtype=x.dtype), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        level = pyro.sample("level", dist.Normal(x @ w, 1.0))
        pyro.sample("obs", dist.Normal(level, 1.0), obs=y)


def discrete(x: Tensor, y: Tensor | None = None) -> None:
    w = pyro.sample("w", dist.Normal(torch.zeros(INPUTS, dtype=x.dtype), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        kind = pyro.sample("kind", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
        pyro.sample("obs", dist.Normal(x @ w + kind, 1.0), obs=y)


def by_observation(x: Tensor, y: Tensor | None = None) -> None:
    w = pyro.sample("w", dist.Normal(torch.zeros(INPUTS, dtype=x.dtype), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        first = pyro.sample("first", dist.Normal(x @ w, 1.0), obs=y)
        pyro.sample("obs", dist.Normal(first * w[0], 1.0), obs=y)


def mixture(x: Tensor, y: Tensor | None = None) -> None:
    w = pyro.sample("w", dist.Normal(torch.zeros(2, dtype=x.dtype), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        component = dist.Normal(w.expand(len(x), 2), 1.0)
        pyro.sample("obs", dist.MixtureSameFamily(dist.Categorical(logits=torch.zeros(len(x), 2)), component), obs=y)


REFUSED: dict[str, tuple[Any, str]] = {
    "rows that depend on each other": (centred, "Rows depend on each other, so that none can be linearised by itself"),
    "a value a row": (local, "Site 'level' has a value for each row, so that .* Use linearized=False"),
    "a discrete value": (discrete, "Site 'kind' is discrete, so that the observations' distribution is no function"),
    "an observation": (by_observation, "parameters of site 'obs' are not finite in row 0 .* depend on an observation"),
    "a mixture": (mixture, "Site 'obs' is MixtureSameFamily, which does not name its parameters"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_models_that_are_not_linearised(name: str) -> None:
    model, message = REFUSED[name]
    posterior = spread_posterior(model, {"x": X, "y": X[:, 0]}, num_chains=1)
    compiled = posterior.compiled
    assert compiled is not None
    mean = {name: torch.full(shape, 0.3, dtype=torch.float64) for name, shape in compiled.latent.items()}
    posterior.approximation = diagonal(mean)
    with pytest.raises(ModelError, match=message):
        posterior.predict({"x": X_NEW}, linearized=True)


def test_a_parameter_without_a_bijection() -> None:
    site = {"name": "obs", "fn": dist.Binomial(torch.tensor(3.0), torch.tensor(0.5)).expand([2])}
    with pytest.raises(ModelError, match="Site 'obs' is Binomial, and latent sites move its parameter 'total_count'"):
        without_bounds(site, ["total_count"])


def test_parameters_there_and_back() -> None:
    """A covariance by its factor, probabilities by their logits, and a scale by its logarithm."""
    covariance = torch.tensor([[2.0, 0.5], [0.5, 1.0]]).expand(3, 2, 2)
    cases: list[tuple[Any, dict[str, Tensor]]] = [
        (dist.MultivariateNormal(torch.zeros(3, 2), covariance), {"scale_tril": torch.linalg.cholesky(covariance)}),
        (dist.Categorical(probs=torch.tensor([0.2, 0.8])), {"logits": torch.tensor([0.2, 0.8]).log()}),
    ]
    for fn, expected in cases:
        site = {"name": "obs", "fn": fn}
        for name, value in expected.items():
            torch.testing.assert_close(natural(site)[name], value)
        free = without_bounds(site, expected)
        again = at_unbounded(site, free)["fn"]
        torch.testing.assert_close(again.mean, fn.mean, equal_nan=True)
        torch.testing.assert_close(again.log_prob(torch.zeros(fn.shape())), fn.log_prob(torch.zeros(fn.shape())))
    scale = torch.tensor([1.0, 3.0])
    torch.testing.assert_close(
        without_bounds({"name": "obs", "fn": dist.Normal(torch.zeros(2), scale)}, ["scale"])["scale"], scale.log()
    )


def test_nothing_is_left_of_the_hook() -> None:
    before = list(distribution.COERCIONS)
    with pytest.raises(ZeroDivisionError), logits_as_written():
        raise ZeroDivisionError
    assert before == distribution.COERCIONS
