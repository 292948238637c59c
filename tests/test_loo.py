"""Leave-one-out cross-validation: against `az.loo`, against fits without the row in closed form, and by sampling."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from posterior_cases import NOISE, exact_posterior, exact_regression, generator, posterior_of, regression
from pyro_scale.diagnostics import khat, leave_one_out, loo, row_densities
from pyro_scale.diagnostics.difference_estimator import by_differences
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from pyro_scale.compile import compile_model
from pyro_scale.errors import ArgumentError, MissingModelError, ModelError
from pyro_scale.gaussians import DenseGaussian
from pyro_scale.posterior import Posterior

NUM_ROWS = 60


def normals(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


X = normals(NUM_ROWS, 3, seed=1)
Y = X @ torch.tensor([1.0, -0.5, 0.2], dtype=torch.float64) + NOISE * normals(NUM_ROWS, seed=2)
Z = (Y > 0).double()


def correlated(*shape: int, seed: int, num_chains: int = 2, num_samples: int = 300) -> Tensor:
    """Autoregressive chains of unit sd."""
    steps = normals(num_chains, num_samples, *shape, seed=seed)
    for i in range(1, num_samples):
        steps[:, i] = 0.8 * steps[:, i - 1] + 0.6 * steps[:, i]
    return steps


def two_sites(x: Tensor, y: Tensor, z: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    s = pyro.sample("s", dist.HalfNormal(1.0))
    pyro.deterministic("s2", s**2)
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.Normal(x @ w, s), obs=y)
        pyro.sample("sign", dist.Bernoulli(logits=x @ w), obs=z)


def local(y: Tensor) -> None:
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    with pyro.plate("data", len(y)):
        value = pyro.sample("value", dist.Normal(0.0, 1.0))
        pyro.sample("obs", dist.Normal(value, scale), obs=y)


def of_all_rows(x: Tensor, y: Tensor) -> None:
    """A covariate that depends on the other rows: it does not split, but every row has a term of its own."""
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.Normal((x - x.mean(0)) @ w, NOISE), obs=y)


def mixture(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with pyro.plate("data", len(y)):
        k = pyro.sample("k", dist.Bernoulli(0.3), infer={"enumerate": "parallel"}).long()
        pyro.sample("obs", dist.Normal(mu[k], 1.0), obs=y)


def own_subsample(x: Tensor, y: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    with pyro.plate("data", len(x), subsample_size=10) as index:
        pyro.sample("obs", dist.Normal(x[index] @ w, NOISE), obs=y[index])


def events(x: Tensor, y: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.Normal((x * w), 2.0).to_event(1), obs=y.unsqueeze(-1) * x)


W = {"w": 0.2 * correlated(3, seed=3)}
CASES: dict[str, tuple[Callable[..., None], dict[str, Tensor], dict[str, Tensor], str]] = {
    "plate": (regression, {"x": X, "y": Y}, W, "obs"),
    "first site": (
        two_sites, {"x": X, "y": Y, "z": Z}, {**W, "s": (s := correlated(seed=4).mul(0.2).exp()), "s2": s**2}, "obs",
    ),
    "second site": (two_sites, {"x": X, "y": Y, "z": Z}, {**W, "s": s, "s2": s**2}, "sign"),
    "local": (local, {"y": Y}, {"scale": s, "value": 0.5 * correlated(NUM_ROWS, seed=5)}, "obs"),
    "rows that do not split": (of_all_rows, {"x": X, "y": Y}, W, "obs"),
    "summed out": (mixture, {"y": Y}, {"mu": 0.2 * correlated(2, seed=6)}, "obs"),
    "own subsample": (own_subsample, {"x": X, "y": Y}, W, "obs"),
    "events": (events, {"x": X, "y": Y}, W, "obs"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("block", [2**21, 7 * 600])
def test_as_arviz_does_it_from_the_group(name: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data, draws, site = CASES[name]
    posterior = posterior_of(compile_model(model, data), draws)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Estimated shape parameter")
        expected = az.loo(posterior.add_groups("log_likelihood"), var_name=site, pointwise=True)
    monkeypatch.setattr(row_densities, "BLOCK_NUMBERS", block)
    found = loo(posterior, sites=[site])
    assert found.elpd == pytest.approx(expected.elpd_loo, abs=1e-6)
    assert found.se == pytest.approx(expected.se, abs=1e-6)
    assert found.p_loo == pytest.approx(expected.p_loo, abs=1e-6)
    np.testing.assert_allclose(found.pareto_k, expected.pareto_k, atol=1e-6)
    np.testing.assert_allclose(found.elpd_rows, expected.loo_i, atol=1e-6)
    assert found.limit == pytest.approx(expected.good_k)
    assert bool(found.warning) == bool(expected.warning)


def test_a_row_takes_all_its_sites_along() -> None:
    model, data, draws, _ = CASES["first site"]
    posterior = posterior_of(compile_model(model, data), draws)
    group = posterior.add_groups("log_likelihood").log_likelihood
    group["both"] = group["obs"] + group["sign"]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Estimated shape parameter")
        expected = az.loo(posterior.idata, var_name="both")
    assert loo(posterior).elpd == pytest.approx(expected.elpd_loo, abs=1e-6)


def test_minibatched_loader_and_float32() -> None:
    expected = loo(posterior_of(compile_model(regression, {"x": X, "y": Y}), W))
    loader = DataLoader(TensorDataset(X, Y), batch_size=16, shuffle=True)
    compiled = [
        compile_model(regression, {"x": X, "y": Y}, batch_size=7),
        compile_model(regression, loader),
    ]
    for each in compiled:
        assert loo(posterior_of(each, W)).elpd == pytest.approx(expected.elpd, abs=1e-6)
    single = compile_model(regression, {"x": X.float(), "y": Y.float()})
    found = loo(posterior_of(single, {"w": W["w"].float()}))
    assert found.elpd == pytest.approx(expected.elpd, rel=1e-5) and found.elpd_rows.dtype == np.float64


def without_each_row(x: Tensor, y: Tensor) -> Tensor:
    """Log predictive density of each row by the exact fit to the others."""
    found = []
    for i in range(len(x)):
        others = torch.arange(len(x)) != i
        mean, covariance = exact_regression(x[others], y[others])
        sd = (NOISE**2 + x[i] @ covariance @ x[i]).sqrt()
        found.append(dist.Normal(x[i] @ mean, sd).log_prob(y[i]))
    return torch.stack(found)


@pytest.fixture(scope="module")
def exact() -> Posterior:
    return exact_posterior(X, Y, num_samples=2000)


def test_as_fits_without_each_row(exact: Posterior) -> None:
    """The error of a row has an sd of about its k-smoothed weight's, 0.002 here; 0.02 is ten of these."""
    found = loo(exact)
    expected = without_each_row(X, Y).numpy()
    print(np.abs(found.elpd_rows - expected).max(), found.elpd - expected.sum())
    assert np.abs(found.elpd_rows - expected).max() < 0.02
    assert found.elpd == pytest.approx(expected.sum(), abs=0.05)
    assert found.se == pytest.approx(math.sqrt(NUM_ROWS) * expected.std(), rel=0.01)
    assert 2 < found.p_loo < 4.5  # three coefficients
    assert found.subsampling_se == 0 and found.warning == "" and list(found.rows) == list(range(NUM_ROWS))


def wide() -> DenseGaussian:
    """A normal of the posterior's mean, with an sd half as large again."""
    mean, covariance = exact_regression(X, Y)
    return DenseGaussian({"w": mean}, 1.5 * torch.linalg.cholesky(covariance))


def test_draws_of_an_approximation_are_weighted() -> None:
    """Without the weights the sum is off by 1.5."""
    posterior = exact_posterior(X, Y, num_chains=1, num_samples=4000)
    posterior.approximation = wide()
    expected = without_each_row(X, Y).numpy()
    found = loo(posterior, seed=1)
    again = loo(posterior, seed=2)
    print(found.elpd - expected.sum(), np.abs(found.elpd_rows - expected).max())
    assert found.elpd == pytest.approx(expected.sum(), abs=0.15)
    assert np.abs(found.elpd_rows - expected).max() < 0.05
    assert 2 < found.p_loo < 4.5
    assert found.elpd != again.elpd and loo(posterior, seed=1).elpd == found.elpd
    sampled = loo(posterior, num_rows=NUM_ROWS // 2, seed=1)
    assert abs(sampled.elpd - found.elpd) < 4 * sampled.subsampling_se


def test_the_difference_estimator_is_unbiased() -> None:
    """Over 4000 samples of rows: estimate and both squared errors within 4 standard errors (one in 5000 runs fails)."""
    rng = np.random.default_rng(0)
    values = rng.normal(-3.0, 1.0, 200)
    surrogate = values + 0.8 * rng.normal(0.5, 1.0, 200)
    found = []
    for _ in range(4000):
        chosen = rng.choice(200, 30, replace=False)
        found.append(by_differences(surrogate, values[chosen], chosen))
    total, se, subsampling_se = np.array(found).T
    spread = total.var()  # known to a standard error of its own
    for sampled, expected, error in (
        (total, values.sum(), 0.0),
        (se**2, 200 * values.var(), 0.0),
        (subsampling_se**2, spread, spread * math.sqrt(2 / 4000)),
    ):
        error = math.hypot(sampled.std() / math.sqrt(4000), error)
        print(sampled.mean(), expected, error)
        assert abs(sampled.mean() - expected) < 4 * error


@pytest.fixture(scope="module")
def many() -> tuple[Posterior, leave_one_out.LeaveOneOut]:
    """A posterior of 400 rows, and what leaving out each of them gives."""
    x = normals(400, 3, seed=7)
    posterior = exact_posterior(x, x.sum(1) + NOISE * normals(400, seed=8), num_chains=2, num_samples=1000)
    return posterior, loo(posterior)


def test_a_sample_of_rows(many: tuple[Posterior, leave_one_out.LeaveOneOut]) -> None:
    posterior, full = many
    found = loo(posterior, num_rows=100, seed=3)
    print(found, (found.elpd - full.elpd) / found.subsampling_se)
    assert len(found.rows) == len(set(found.rows)) == 100 and (np.diff(found.rows) > 0).all()
    assert abs(found.elpd - full.elpd) < 3 * found.subsampling_se
    assert 0 < found.subsampling_se < 0.02  # 0.5 if densities given all rows stood for the others
    assert found.se == pytest.approx(full.se, rel=0.001)
    assert found.p_loo == pytest.approx(full.p_loo, abs=0.01)
    np.testing.assert_allclose(found.elpd_rows, full.elpd_rows[found.rows], atol=1e-12)
    density = posterior.log_likelihood()["obs"].flatten(0, 1)
    roughly = math.log(len(density)) - (-density).logsumexp(0).numpy()
    assert found.elpd == pytest.approx(roughly.sum() + 400 * (found.elpd_rows - roughly[found.rows]).mean())
    assert list(loo(posterior, num_rows=100, seed=4).rows) != list(found.rows)
    assert loo(posterior, num_rows=400).elpd == full.elpd


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_few_draws_stand_for_all_where_rows_are_many(
    many: tuple[Posterior, leave_one_out.LeaveOneOut], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leave_one_out, "ROUGH_NUMBERS", 100 * 400)
    posterior, full = many
    found = loo(posterior, num_rows=100, seed=seed)
    print((found.elpd - full.elpd) / found.subsampling_se)
    assert abs(found.elpd - full.elpd) < 3 * found.subsampling_se
    assert found.se == pytest.approx(full.se, rel=0.03) and found.p_loo == pytest.approx(full.p_loo, abs=0.5)
    assert 0.1 < found.subsampling_se < 2  # the noise of a hundred draws, not that of all


def test_no_array_has_all_draws_of_all_rows(exact: Posterior, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    at = row_densities.RowDensities.at

    def watched(self: row_densities.RowDensities, indices: Tensor) -> Any:
        sizes.append(self.num_draws * len(indices))
        return at(self, indices)

    monkeypatch.setattr(row_densities.RowDensities, "at", watched)
    monkeypatch.setattr(row_densities, "BLOCK_NUMBERS", 9 * 8000)
    loo(exact), loo(exact, num_rows=20)
    assert max(sizes) == 9 * 8000 and sum(sizes) == 8000 * (60 + 20 + 60)


def test_an_outlier_is_told() -> None:
    y = Y.clone()
    y[17] = 15.0
    found = loo(exact_posterior(X, y, num_samples=500))
    assert found.pareto_k[17] > 0.7
    assert "1 of 60 rows have k > 0.70 (rows 17): the posterior without them is far" in found.warning
    text = str(found)
    assert (
        text.startswith("LOO: 60 of 60 rows left out, 2000 draws\n  elpd  ") and "59 rows up to 0.70, 1 above" in text
    )
    assert "subsampling_se" not in text and "(rows 17)" in text


def told(found: leave_one_out.LeaveOneOut) -> str:
    print(found.effective_size, found.approximation_k, found.warning)
    return found.warning


def test_what_makes_k_large_is_told_before_the_rows_are_blamed() -> None:
    mean, covariance = exact_regression(X, Y)
    posterior = exact_posterior(X, Y, num_chains=1, num_samples=2000)
    for factor, center in ((0.3, mean), (1.0, mean + 4 * covariance.diagonal().sqrt())):
        posterior.approximation = DenseGaussian({"w": center}, factor * torch.linalg.cholesky(covariance))
        found = loo(posterior)
        assert found.approximation_k == pytest.approx(khat(posterior, num_samples=2000).k, abs=0.3)
        assert found.approximation_k > found.limit and "The approximation is poor: its own k is" in told(found)
        assert "Look at these rows" not in found.warning and "The approximation is poor" in str(found)
    posterior.approximation = wide()
    assert loo(posterior).approximation_k < 0.5 and told(loo(posterior)) == ""
    y = Y.clone()
    y[17] = 15.0
    few = exact_posterior(X, y, num_chains=4, num_samples=10)
    warning = told(loo(few))
    assert warning.startswith("The draws are worth") and warning.endswith("or fit again without them.")
    assert loo(few).effective_size < 100 and loo(few).approximation_k == -math.inf
    exact = exact_posterior(X, y, num_samples=500)
    assert loo(exact).effective_size == pytest.approx(2000, rel=0.2) and told(loo(exact)).startswith("1 of 60 rows")


def test_masked_rows_cost_nothing() -> None:
    def masked(x: Tensor, y: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        with pyro.plate("data", len(x)), pyro.poutine.mask(mask=x[:, 0] > 0):
            pyro.sample("obs", dist.Normal(x @ w, NOISE), obs=y)

    found = loo(posterior_of(compile_model(masked, {"x": X, "y": Y}), W))
    off = (X[:, 0] <= 0).numpy()
    assert (np.abs(found.elpd_rows[off]) < 1e-12).all() and (found.pareto_k[off] == -np.inf).all()


def joint(x: Tensor, y: Tensor) -> None:
    s = pyro.sample("s", dist.HalfNormal(1.0))
    pyro.sample("obs", dist.MultivariateNormal(torch.zeros(len(x)), s * (x @ x.T + torch.eye(len(x)))), obs=y)


def bounded(y: Tensor) -> None:
    top = pyro.sample("top", dist.HalfNormal(5.0))
    with pyro.plate("data", len(y)):
        pyro.sample("obs", dist.Uniform(-top, top, validate_args=False), obs=y)


def spoiled() -> Posterior:
    draws = W["w"].clone()
    draws[0, 3, 1] = torch.nan
    return posterior_of(compile_model(regression, {"x": X, "y": Y}), {"w": draws})


def good() -> Posterior:
    return posterior_of(compile_model(regression, {"x": X, "y": Y}), W)


def loaded() -> Posterior:
    posterior = good()
    posterior.compiled = None
    return posterior


def at(temperature: float | None) -> Posterior:
    posterior = good()
    posterior.settings["temperature"] = temperature
    return posterior


BAD: dict[str, tuple[Callable[[], Any], dict[str, Any], type[Exception], str]] = {
    "no posterior": (lambda: W, {}, ArgumentError, "loo got a dict; it takes a posterior, as infer returns"),
    "no model": (loaded, {}, MissingModelError, "loo runs the model, and this posterior was"),
    "site not kept": (
        lambda: posterior_of(compile_model(two_sites, {"x": X, "y": Y, "z": Z}), W), {}, MissingModelError,
        "loo needs draws of every latent site, and 's' was not kept. Name it in keep",
    ),
    "few draws": (
        lambda: posterior_of(compile_model(regression, {"x": X, "y": Y}), {"w": W["w"][:, :10]}), {}, ArgumentError,
        "needs at least 25; the posterior has 2 x 10. Raise num_samples",
    ),
    "cold": (lambda: at(0.5), {}, ArgumentError, "temperature of this one is 0.5. Fit again with temperature=1"),
    "schedule": (lambda: at(None), {}, ArgumentError, "temperature of this one is a schedule. Fit again with"),
    "NaN": (spoiled, {}, ArgumentError, "1 of the draws of site 'w' are not finite"),
    "more rows than there are": (good, {"num_rows": 61}, ArgumentError, "num_rows is 61; .* from 2 to 60, the number"),
    "one row": (good, {"num_rows": 1}, ArgumentError, "num_rows is 1; it must be a whole number from 2"),
    "a share of rows": (good, {"num_rows": 0.5}, ArgumentError, "num_rows is 0.5"),
    "seed": (good, {"seed": -1}, ArgumentError, "seed is -1"),
    "unknown site": (good, {"sites": ["y"]}, ArgumentError, r"sites is \['y'\]; it must be a list of names"),
    "a name": (good, {"sites": "obs"}, ArgumentError, "sites is 'obs'; it must be a list of names among 'obs'"),
    "no sites": (good, {"sites": []}, ArgumentError, "sites is empty; name some of 'obs'"),
    "a joint term": (
        lambda: posterior_of(compile_model(joint, {"x": X, "y": Y}), {"s": s}), {}, ModelError,
        "site 'obs' is one term for all 60 rows, .* Give each row a term of its own",
    ),
    "no density": (
        lambda: posterior_of(compile_model(bounded, {"y": Y}), {"top": s}), {}, ModelError,
        r"log-likelihood of row \d+ is not finite at \d+ of 600 draws. Observe it by a distribution whose support",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_refused(name: str) -> None:
    make, arguments, error, message = BAD[name]
    with pytest.raises(error, match=message):
        loo(make(), **arguments)


def test_temperature_1_is_that_of_the_posterior() -> None:
    assert loo(at(1.0)).elpd == loo(at(1)).elpd == loo(good()).elpd  # the last does not tell


def test_one_chain_is_enough() -> None:
    draws = {"w": W["w"][:1]}
    posterior = posterior_of(compile_model(regression, {"x": X, "y": Y}), draws)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Estimated shape parameter")
        expected = az.loo(posterior.add_groups("log_likelihood"))
    assert loo(posterior).elpd == pytest.approx(expected.elpd_loo, abs=1e-6)
