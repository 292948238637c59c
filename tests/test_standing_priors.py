"""A posterior as the prior of the next call: what is learned in parts is what is learned at once."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from gaussian_cases import STRUCTURES, numbers
from posterior_cases import NOISE, exact_regression, posterior_of, regression, spread_posterior
from torch import Tensor

import pyro_scale as ps
from pyro_scale import tree
from pyro_scale.compile import compile_model
from pyro_scale.errors import ArgumentError, MinibatchError
from pyro_scale.gaussians import DenseGaussian, DiagonalGaussian
from pyro_scale.posterior import Posterior
from pyro_scale.standing_priors import prior_of, with_prior
from pyro_scale.types import Gaussian

N, DIM = 40, 3
X = numbers(N, DIM, seed=0)
Y = X @ torch.tensor([1.0, -0.5, 0.2], dtype=torch.float64) + NOISE * numbers(N, seed=1)
FIRST, REST = {"x": X[:13], "y": Y[:13]}, {"x": X[13:], "y": Y[13:]}
WHOLE = {"x": X, "y": Y}
MEAN, COVARIANCE = exact_regression(X, Y)
QUIET: dict[str, Any] = {"seed": 0, "progress": False}


def covariance_of(gaussian: Gaussian) -> Tensor:
    identity = {"w": torch.eye(DIM, dtype=torch.float64)}
    factor = (gaussian.transform(identity)["w"] - gaussian.mean["w"]).T
    return factor @ factor.T


def exact_prior(compiled: Any) -> Posterior:
    """What the first rows tell, as a posterior made by hand."""
    mean, covariance = exact_regression(FIRST["x"], FIRST["y"])
    gaussian = DenseGaussian({"w": mean}, torch.linalg.cholesky(covariance))
    return posterior_of(compiled, {"w": mean[None, None]}, approximation=gaussian)


EXACT = ["laplace_dense", "ekf_dense"]


@pytest.mark.parametrize("method", [name for name in EXACT if name in ps.kernels.METHODS])
def test_two_parts_one_after_the_other_are_all_at_once(method: str) -> None:
    first = ps.infer(regression, FIRST, method, **QUIET)
    both = ps.infer(regression, REST, method, prior=first, **QUIET)
    once = ps.infer(regression, WHOLE, method, **QUIET)
    for posterior in (both, once):
        assert posterior.approximation is not None
        torch.testing.assert_close(posterior.approximation.mean["w"], MEAN, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(covariance_of(posterior.approximation), COVARIANCE, rtol=1e-6, atol=1e-8)


def test_variational_inference_in_two_parts() -> None:
    """Of a posterior that a normal fits: means within 5 % of an sd, and variances within 3 %."""
    first = ps.infer(regression, FIRST, "vi_dense", **QUIET)
    both = ps.infer(regression, REST, "vi_dense", prior=first, **QUIET)
    assert both.approximation is not None
    away = (both.approximation.mean["w"] - MEAN) / COVARIANCE.diagonal().sqrt()
    ratio = covariance_of(both.approximation).diagonal() / COVARIANCE.diagonal()
    print("mean off by", away.tolist(), "sds; variances by", (ratio - 1).tolist())
    assert away.abs().max() < 0.05
    assert (ratio - 1).abs().max() < 0.03


@pytest.mark.parametrize("batch_size", [None, 9])
def test_chains_go_on_from_a_prior(batch_size: int | None) -> None:
    """The tuned run is allowed a bias of 5 %; means within 5 standard errors, some 1e-6 to fail."""
    prior = exact_prior(compile_model(regression, FIRST))
    found = ps.infer(regression, REST, prior=prior, num_samples=500, num_chains=2, batch_size=batch_size, **QUIET)
    draws = found.draws["w"].flatten(0, 1)
    sd = COVARIANCE.diagonal().sqrt()
    away, ratio = (draws.mean(0) - MEAN) / sd, draws.std(0) / sd
    print("mean off by", away.tolist(), "sds; sd ratio", ratio.tolist())
    assert away.abs().max() < 5 / math.sqrt(400)
    assert (ratio - 1).abs().max() < 0.05 + 5 / math.sqrt(2 * 400)


@pytest.mark.parametrize("structure", STRUCTURES, ids=lambda structure: structure.__name__)
@pytest.mark.parametrize("batch_size", [None, 7])
def test_the_log_posterior_is_the_density_of_the_prior_plus_the_likelihood(structure: Any, batch_size: Any) -> None:
    def model(x: Tensor, y: Tensor | None = None) -> None:
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([DIM, 2]).to_event(2))
        sigma = pyro.sample("sigma", dist.HalfCauchy(1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal((x @ w).sum(-1), sigma), obs=y)

    plain = compile_model(model, WHOLE, batch_size=batch_size)
    at = {"w": numbers(DIM, 2, seed=2), "sigma": torch.tensor(0.3, dtype=torch.float64)}
    gaussian = structure({"w": numbers(DIM, 2, seed=3), "sigma": torch.tensor(-0.1, dtype=torch.float64)})
    compiled = with_prior(plain, gaussian)
    likelihood = dist.Normal((X @ at["w"]).sum(-1), at["sigma"].exp()).log_prob(Y)
    rows = torch.arange(N) if batch_size is None else torch.arange(batch_size)
    expected = gaussian.log_prob(at) + N / len(rows) * likelihood[rows].sum()
    batch = compiled.batch(None if batch_size is None else rows)
    torch.testing.assert_close(compiled.log_posterior(at, batch), expected)
    torch.testing.assert_close(compiled.log_prior(at), gaussian.log_prob(at))
    torch.testing.assert_close(compiled.on(compiled.data).log_prior(at), gaussian.log_prob(at))
    torch.testing.assert_close(compiled.log_likelihood(at, batch)["obs"], likelihood[rows])
    several = tree.map(lambda leaf: torch.stack([leaf, leaf + 0.1]), at)
    mapped = torch.func.vmap(torch.func.grad(lambda position: compiled.log_posterior(position, batch)))(several)
    shifted = tree.map(lambda leaf: leaf + 0.1, at)
    alone = torch.func.grad(lambda position: compiled.log_posterior(position, batch))(shifted)
    for name, leaf in alone.items():
        torch.testing.assert_close(mapped[name][1], leaf)


def test_draws_of_the_prior_and_starts_are_those_of_what_stands_for_it() -> None:
    """A prior 20 sds from the model's: 500 draws within 5 standard errors; both starts within 6 of its sds."""
    gaussian = DiagonalGaussian({"w": torch.full((DIM,), 20.0)}, {"w": torch.full((DIM,), 0.1)})
    prior = posterior_of(compile_model(regression, FIRST), {"w": torch.zeros(1, 1, DIM)}, approximation=gaussian)
    kernel = ps.kernels.SGLD(step_size=1e-12)
    found = ps.infer(
        regression, REST, kernel, prior=prior, initial="prior", num_chains=2, num_samples=2, warmup_steps=0, **QUIET
    )
    assert (found.draws["w"] - 20).abs().max() < 0.6
    drawn = torch.tensor(found.add_groups("prior")["prior"]["w"].values)
    assert drawn.shape == (1, 500, DIM)
    assert (drawn.mean((0, 1)) - 20).abs().max() < 5 * 0.1 / math.sqrt(500)


@pytest.mark.parametrize("steps", ["captured", "native"])
def test_compiled_steps_have_the_prior(steps: str) -> None:
    prior = exact_prior(compile_model(regression, FIRST))
    options = {"num_samples": 20, "warmup_steps": 5, "num_chains": 2, **QUIET}
    kernel = ps.kernels.SGHMC(step_size=0.05)
    found = ps.infer(regression, REST, kernel, prior=prior, jit_compile=steps == "native", **options)
    without = ps.infer(regression, REST, kernel, jit_compile=False, **options)
    again = ps.infer(regression, REST, kernel, prior=prior, jit_compile=False, **options)
    torch.testing.assert_close(found.draws["w"], again.draws["w"], rtol=1e-9, atol=1e-10)
    assert (found.draws["w"] - without.draws["w"]).abs().max() > 1e-3


def test_single_precision_takes_a_prior_in_double() -> None:
    single = {name: value.float() for name, value in REST.items()}
    compiled = compile_model(regression, single)
    found = prior_of(exact_prior(compile_model(regression, FIRST)), compiled)
    assert found.mean["w"].dtype == torch.float32
    assert with_prior(compiled, found).log_prior({"w": torch.zeros(DIM)}).dtype == torch.float32


def test_a_file_keeps_the_prior(tmp_path: Path) -> None:
    prior = exact_prior(compile_model(regression, FIRST))
    kernel = ps.kernels.SGHMC(step_size=0.05)
    found = ps.infer(regression, REST, kernel, prior=prior, num_samples=5, warmup_steps=5, **QUIET)
    found.save(tmp_path / "run.nc")
    assert prior.approximation is not None
    again = ps.load(tmp_path / "run.nc", regression, REST)
    assert again.compiled is not None and found.compiled is not None
    at = {"w": numbers(DIM, seed=4)}
    torch.testing.assert_close(again.compiled.log_prior(at), prior.approximation.log_prob(at))
    assert ps.load(tmp_path / "run.nc").compiled is None


def test_a_loaded_posterior_goes_on(tmp_path: Path) -> None:
    prior = exact_prior(compile_model(regression, FIRST))
    prior.save(tmp_path / "first.nc")
    found = ps.infer(regression, REST, "ekf_dense", prior=ps.load(tmp_path / "first.nc"), **QUIET)
    assert found.approximation is not None
    torch.testing.assert_close(found.approximation.mean["w"], MEAN, rtol=1e-6, atol=1e-8)


def wider(x: Tensor, y: Tensor | None = None) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([DIM + 1]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.Normal(x @ w[:DIM], NOISE), obs=y)


def another(x: Tensor, y: Tensor | None = None) -> None:
    w = pyro.sample("weight", dist.Normal(0.0, 1.0).expand([DIM]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.Normal(x @ w, NOISE), obs=y)


def with_factor(x: Tensor, y: Tensor | None = None) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([DIM]).to_event(1))
    pyro.factor("ridge", -w.square().sum())
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.Normal(x @ w, NOISE), obs=y)


def with_measurement(x: Tensor, y: Tensor | None = None) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([DIM]).to_event(1))
    pyro.sample("sum", dist.Normal(w.sum(), 1.0), obs=torch.tensor(0.0))
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.Normal(x @ w, NOISE), obs=y)


def with_local(x: Tensor, y: Tensor | None = None) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([DIM]).to_event(1))
    with pyro.plate("data", len(x)):
        level = pyro.sample("level", dist.Normal(x @ w, 1.0))
        pyro.sample("obs", dist.Normal(level, NOISE), obs=y)


REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "another shape": (wider, ArgumentError, r"Site 'w' has shape \(4,\) \(unconstrained\), and that of prior \(3,\)"),
    "another site": (another, ArgumentError, "prior is a posterior of 'w', and the model's latent sites are 'weight'"),
    "a factor": (with_factor, ArgumentError, "Site 'ridge' is a factor, for no row alone, and whether prior knows"),
    "a measurement": (with_measurement, ArgumentError, "Site 'sum' is observed once, for no row alone"),
    "a value a row": (with_local, MinibatchError, "Site 'level' has a value for each row, of which prior knows those"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_models_that_a_prior_does_not_fit(name: str) -> None:
    model, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        ps.infer(model, REST, prior=exact_prior(compile_model(regression, FIRST)), **QUIET)


def test_what_is_no_prior() -> None:
    chains = spread_posterior(regression, FIRST)
    with pytest.raises(ArgumentError, match="prior is a posterior by by hand, which has draws alone, and no normal"):
        ps.infer(regression, REST, prior=chains, **QUIET)
    for bad in (dist.Normal(0.0, 1.0), "first", {"w": 0.0}, 3):
        with pytest.raises(ArgumentError, match=f"prior is a {type(bad).__name__}; it must be a posterior, as prior="):
            ps.infer(regression, REST, prior=bad, **QUIET)  # type: ignore[arg-type]
    chains.approximation = DiagonalGaussian({"w": torch.full((DIM,), math.nan)}, {"w": torch.ones(DIM)})
    with pytest.raises(ArgumentError, match="The approximation of prior is not finite"):
        ps.infer(regression, REST, prior=chains, **QUIET)
