"""R-hat and effective sample sizes of predictions, against ArviZ on predictions made by hand."""

from __future__ import annotations

import math
from typing import Any

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from posterior_cases import posterior_of, spread_posterior
from pyro_scale.diagnostics import predictive_convergence
from small_models import DATA, X, numbers, regression
from torch import Tensor

from pyro_scale.compile import compile_model
from pyro_scale.errors import ArgumentError, MissingModelError, ModelError, PyroScaleError
from pyro_scale.posterior import Posterior

X_NEW = numbers(3, 2, seed=10)


def network(x: Tensor, y: Tensor | None = None) -> None:
    """Hidden units may change places, and both weights of one their sign."""
    first = pyro.sample("first", dist.Normal(0.0, 1.0).expand([2, 3]).to_event(2))
    last = pyro.sample("last", dist.Normal(0.0, 1.0).expand([3, 4]).to_event(2))
    with pyro.plate("data", len(x)):
        pyro.sample("label", dist.Categorical(logits=(x @ first).tanh() @ last), obs=y)


LABELS = torch.arange(20) % 4


def of_network(same: bool, num_chains: int = 2) -> Posterior:
    """Chains around weights that predict the same, or others."""
    first, last = numbers(2, 3, seed=0), numbers(3, 4, seed=1)
    order, sign = torch.tensor([2, 0, 1]), torch.tensor([-1.0, 1.0, -1.0], dtype=torch.float64)
    moved = (sign * first[:, order], sign[:, None] * last[order])
    places = [(first, last), moved if same else (first + 1, last)][:num_chains]
    noise = [0.1 * numbers(num_chains, 200, *shape, seed=2) for shape in ((2, 3), (3, 4))]
    draws = {
        name: torch.stack([place[k] + noise[k][chain] for chain, place in enumerate(places)])
        for k, name in enumerate(("first", "last"))
    }
    return posterior_of(compile_model(network, {"x": X, "y": LABELS}), draws)


def test_the_numbers_of_arviz() -> None:
    posterior = of_network(same=False)
    table = predictive_convergence(posterior, {"x": X_NEW})
    assert table.index.names == ["site", "value"]
    assert list(table.loc["label"].index) == [f"{row}, {k}" for row in range(3) for k in range(4)]
    first, last = posterior.draws["first"], posterior.draws["last"]
    probabilities = ((X_NEW @ first).tanh() @ last).softmax(-1).numpy()
    for row in range(3):
        for k in range(4):
            found, values = table.loc[("label", f"{row}, {k}")], probabilities[:, :, row, k]
            assert found["mean"] == pytest.approx(values.mean())
            assert found["sd"] == pytest.approx(values.std(ddof=1))
            # values next to the median are as far from it but for rounding, which decides their order
            assert found["r_hat"] == pytest.approx(float(az.rhat(values)), rel=5e-3)
            assert found["ess_bulk"] == pytest.approx(float(az.ess(values)))
            assert found["ess_tail"] == pytest.approx(float(az.ess(values, method="tail")))
            odds = np.log(values / (1 - values))
            assert found["ess_bulk"] == pytest.approx(float(az.ess(odds)))


def test_weights_disagree_where_predictions_do_not() -> None:
    same = of_network(same=True)
    assert float(az.rhat(same.draws["first"][..., 0, 0].numpy())) > 1.5
    assert predictive_convergence(same)["r_hat"].max() < 1.05
    assert predictive_convergence(of_network(same=False))["r_hat"].max() > 1.5


def test_numbers_rows_of_the_fit_and_thinning() -> None:
    compiled = compile_model(regression, DATA)
    posterior = posterior_of(compiled, {"w": numbers(3, 40, 2, seed=3), "sigma": numbers(3, 40, seed=4).exp()})
    table = predictive_convergence(posterior).loc["obs"]
    means = (posterior.draws["w"] @ X.T).numpy()
    assert list(table.index) == [str(row) for row in range(len(X))]
    assert np.allclose(table["r_hat"], [float(az.rhat(means[..., row])) for row in range(len(X))], rtol=5e-3)  # ditto
    few = predictive_convergence(posterior, num_samples=20).loc[("obs", "4")]
    chosen = torch.linspace(0, 39, 20).round().long()
    assert few["ess_bulk"] == pytest.approx(float(az.ess(means[:, chosen, 4])))
    one = predictive_convergence(posterior, {"x": X_NEW, "y": X_NEW[:, 0]})
    assert one.equals(predictive_convergence(posterior, {"x": X_NEW}))


def test_blocks_of_draws_and_of_values(monkeypatch: pytest.MonkeyPatch) -> None:
    posterior = of_network(same=False)
    whole = predictive_convergence(posterior)
    monkeypatch.setattr("pyro_scale.diagnostics.value_moments.BLOCK_NUMBERS", 1000)
    monkeypatch.setattr("pyro_scale.predict.BLOCK_DRAWS", 7)
    parts = predictive_convergence(posterior)
    assert np.allclose(parts, whole, rtol=1e-12)


def test_one_chain_and_predictions_that_do_not_vary() -> None:
    table = predictive_convergence(of_network(same=True, num_chains=1))
    assert table["r_hat"].isna().all() and table["ess_bulk"].notna().all()
    still = predictive_convergence(of_network(same=True), {"x": torch.zeros(1, 2)})
    assert still["mean"].tolist() == [0.25] * 4
    assert still["sd"].eq(0).all() and still[["ess_bulk", "ess_tail", "r_hat"]].isna().all(axis=None)


def test_global_random_states_are_left_alone() -> None:
    before = torch.get_rng_state()
    predictive_convergence(of_network(same=True))
    assert torch.equal(torch.get_rng_state(), before)


def per_row(x: Tensor, y: Tensor | None = None) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(w, 1.0))
        pyro.sample("obs", dist.Normal(z, 1.0), obs=y)


def mixture(x: Tensor, y: Tensor | None = None) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Bernoulli(0.5))
        pyro.sample("obs", dist.Normal(w[k.long()] * x[:, 0], 1.0), obs=y)


def without_moments(x: Tensor, y: Tensor | None = None) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with pyro.plate("data", len(x)):
        law = dist.TransformedDistribution(dist.Normal(x @ w, 1.0), [dist.transforms.ExpTransform()])
        pyro.sample("obs", law, obs=y)


def test_latent_values_of_the_rows() -> None:
    """Known for those of the fit, whose means they are; not for others."""
    fitted = spread_posterior(per_row, DATA, num_samples=5)
    table = predictive_convergence(fitted).loc["obs"]
    assert np.allclose(table["mean"], fitted.draws["z"].mean((0, 1)))
    with pytest.raises(ModelError, match=r"Site 'z' has a value for each row that the draws do not hold"):
        predictive_convergence(fitted, {"x": X_NEW})
    with pytest.raises(ModelError, match=r"Site 'k' has a value for each row.*Sum it out in the model"):
        predictive_convergence(spread_posterior(mixture, DATA, num_samples=5))


def test_posteriors_without_convergence() -> None:
    short = spread_posterior(regression, DATA)
    without = spread_posterior(regression, DATA)
    without.compiled = None
    lacking = spread_posterior(regression, DATA)
    del lacking.draws["sigma"]
    unknown = spread_posterior(without_moments, {"x": X, "y": DATA["y"].exp()}, num_samples=5)
    cases: list[tuple[Any, Any, type[PyroScaleError], str]] = [
        (short, None, ArgumentError, "There are 3 draws a chain; R-hat and effective sample sizes need 4"),
        (without, None, MissingModelError, "predictive_convergence runs the model, and this posterior was loaded"),
        (lacking, None, MissingModelError, "'sigma' was not kept"),
        (unknown, None, ModelError, "No observed site has a distribution whose mean is known"),
        ({"w": X}, None, ArgumentError, "got a dict; it takes a posterior"),
        (short, {"x": X_NEW[:, :1]}, PyroScaleError, "rows of shape"),
    ]
    for posterior, data, kind, message in cases:
        with pytest.raises(kind, match=message):
            predictive_convergence(posterior, data)
    with pytest.raises(ArgumentError, match="num_samples is 4"):
        predictive_convergence(short, num_samples=4)
    assert math.isfinite(predictive_convergence(spread_posterior(regression, DATA, num_samples=4))["r_hat"].max())
