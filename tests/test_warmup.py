"""Runs that are tuned: against exact posteriors of unscaled, correlated, skewed and multimodal models."""

from __future__ import annotations

import logging
from typing import Any

import arviz as az
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from small_models import numbers
from torch import Tensor

import pyro_scale as ps
from pyro_scale.dense import MOST_THINNING
from pyro_scale.kernels import METHODS, SGHMC, SGNHT
from pyro_scale.posterior import Posterior

NUM_ROWS, NOISE = 400, 3.0
SCALES = torch.tensor([1.0, 1e-3, 250.0, 1.0], dtype=torch.float64)
PRIOR = torch.tensor([10.0, 1e4, 10.0, 10.0], dtype=torch.float64)


def covariates() -> Tensor:
    """Of three scales, the last two correlated at 0.98."""
    x = numbers(NUM_ROWS, 4, seed=1)
    x[:, 0] = 1.0
    x[:, 3] = x[:, 2] + 0.2 * x[:, 3]
    return x * SCALES


X = covariates()
Y = X @ (torch.tensor([2.0, -1.0, 0.5, 1.0], dtype=torch.float64) / SCALES) + NOISE * numbers(NUM_ROWS, seed=2)
DATA = {"x": X, "y": Y}


def linear(x: Tensor, y: Tensor | None = None) -> None:
    w = pyro.sample("w", dist.Normal(torch.zeros(4), PRIOR).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.Normal(x @ w, NOISE), obs=y)


def exact() -> tuple[Tensor, Tensor]:
    """Mean and sds of the conjugate posterior."""
    precision = X.T @ X / NOISE**2 + torch.diag(PRIOR**-2)
    return torch.linalg.solve(precision, X.T @ Y / NOISE**2), torch.linalg.inv(precision).diagonal().sqrt()


def tuned(**options: Any) -> Posterior:
    return ps.infer(linear, DATA, **{"batch_size": 40, "seed": 0, "progress": False, **options})


def test_the_model_is_one_that_the_defaults_do_not_suit() -> None:
    with pytest.raises(ps.errors.NonFiniteError):
        tuned(method=SGHMC(step_size=SGHMC.default_step_size))


@pytest.mark.parametrize("method", [name for name, kernel in METHODS.items() if not hasattr(kernel, "fitting")])
def test_every_kernel_lands_on_the_exact_posterior(method: str) -> None:
    """Of 2000 draws: within 3.5 standard errors of means and sds."""
    posterior = tuned(method=method, num_samples=500)
    mean, sd = exact()
    draws = posterior.draws["w"]
    flat = draws.flatten(0, 1)
    assert float(((flat.mean(0) - mean) / sd).abs().max()) < 0.08
    assert torch.allclose(flat.std(0) / sd, torch.ones(4, dtype=torch.float64), atol=0.06)
    effective = [float(az.ess(draws[..., i].numpy())) for i in range(4)]
    assert min(effective) > 0.5 * draws.shape[0] * draws.shape[1]
    assert max(float(az.rhat(draws[..., i].numpy())) for i in range(4)) < 1.01


def test_control_variates_keep_the_noise_of_small_batches_low() -> None:
    """Without them the variance of the gradient over four rows is a hundred times that of momenta."""
    assert tuned(batch_size=4, num_samples=2).settings["tuning"]["gradient_noise"] < 10


def test_strong_friction_takes_steps_that_the_kernel_allows() -> None:
    kernel = SGHMC(friction=10.0)
    posterior = tuned(method=kernel, num_samples=2)
    assert posterior.step_size is not None and posterior.step_size <= kernel.max_step_size


def test_temperature_scales_the_posterior() -> None:
    posterior = tuned(method=SGHMC(temperature=0.25), num_samples=400)
    _, sd = exact()
    assert torch.allclose(posterior.draws["w"].flatten(0, 1).std(0) / sd, torch.tensor(0.5).double(), atol=0.03)


def test_a_smaller_tolerance_takes_smaller_steps() -> None:
    large, small = (tuned(bias_tolerance=tolerance, num_samples=2) for tolerance in (0.05, 0.005))
    assert small.step_size is not None and large.step_size is not None
    assert small.step_size < 0.5 * large.step_size
    assert small.settings["thinning"] > large.settings["thinning"]


def test_in_full_batch_nothing_is_subtracted() -> None:
    posterior = tuned(batch_size=None, num_samples=2)
    assert posterior.settings["tuning"]["gradient_noise"] == 0
    assert "gradient_variance=0.0" in posterior.settings["kernel"]


def test_what_is_asked_for_is_obeyed() -> None:
    posterior = tuned(warmup_steps=100, thinning=3, num_samples=7)
    assert posterior.num_steps == 100 + 3 * 7
    assert 0 < posterior.settings["tuning"]["pilot_steps"] <= 75
    none = tuned(warmup_steps=0, thinning=1, num_samples=5)
    assert none.num_steps == 5
    assert none.settings["tuning"]["pilot_steps"] == 0


def test_without_a_pilot_chains_start_around_the_mode() -> None:
    mean, sd = exact()
    posterior = tuned(warmup_steps=0, thinning=1, num_samples=1, num_chains=300)
    standardised = (posterior.draws["w"][:, 0] - mean) / sd
    assert float(standardised.mean(0).abs().max()) < 0.25
    assert float((standardised.std(0) - 1).abs().max()) < 0.2


def test_the_same_seed_gives_the_same_draws_and_another_others() -> None:
    one, same, other = (tuned(seed=seed, num_samples=4, jit_compile=False).draws["w"] for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def two_modes(y: Tensor) -> None:
    """The sign of mu is not identified, and no chain crosses from one to the other."""
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(y)):
        pyro.sample("obs", dist.Normal(mu.abs(), 1.0), obs=y)


def test_chains_stay_in_their_modes_and_r_hat_says_so() -> None:
    y = 3 + numbers(100, seed=3)
    options: dict[str, Any] = {"num_samples": 300, "jit_compile": False, "progress": False}
    posterior = ps.infer(two_modes, y, batch_size=10, num_chains=6, seed=0, **options)
    assert posterior.settings["tuning"]["modes"] == 2
    draws = posterior.draws["mu"]
    signs = draws.sign()
    assert torch.equal(signs, signs[:, :1].expand_as(signs))
    assert set(signs[:, 0].tolist()) == {-1.0, 1.0}
    assert float(az.rhat(draws.numpy())) > 1.5  # of ranks, which are bounded
    assert draws.abs().flatten().std() == pytest.approx(0.1, rel=0.1)
    assert float(draws.abs().mean()) == pytest.approx(float(y.mean()) * 100 / 100.01, abs=0.01)


def centered_schools(sigma: Tensor, y: Tensor) -> None:
    """Its density has no maximum: it grows without end as tau goes to 0."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(sigma)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("obs", dist.Normal(theta, sigma), obs=y)


SCHOOLS = {
    "sigma": torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0], dtype=torch.float64),
    "y": torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0], dtype=torch.float64),
}


def test_without_a_mode_the_pilot_finds_coordinates() -> None:
    posterior = ps.infer(centered_schools, SCHOOLS, num_samples=300, seed=0, progress=False)
    assert posterior.settings["tuning"]["modes"] == 0
    assert posterior.settings["thinning"] <= MOST_THINNING
    mu = posterior.draws["mu"].flatten()
    assert float(mu.mean()) == pytest.approx(4.4, abs=1.0)  # the reference of posteriordb: 4.4, sd 3.3
    assert float(mu.std()) == pytest.approx(3.3, rel=0.25)


def test_a_flat_direction_is_named(caplog: pytest.LogCaptureFixture) -> None:
    def model(x: Tensor, y: Tensor) -> None:
        w = pyro.sample("w", dist.ImproperUniform(constraints.real, (), (3,)))
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(x @ w, 1.0), obs=y)

    x = numbers(50, 3, seed=5)
    x[:, 2] = x[:, 0]
    options: dict[str, Any] = {"num_samples": 2, "warmup_steps": 0, "thinning": 1, "progress": False}
    ps.infer(model, {"x": x, "y": x[:, 1]}, seed=0, **options)
    [said] = [record.getMessage() for record in caplog.records if "no mode" in record.getMessage()]
    assert "along 'w[0]', 'w[2]'." in said or "along 'w[2]', 'w[0]'." in said


@pytest.mark.parametrize(
    ("kernel", "reason"),
    [
        (SGHMC(temperature=0.0), "the temperature is a schedule, or 0"),
        (SGHMC(temperature=ps.schedules.constant(1.0)), "the temperature is a schedule, or 0"),
        (SGHMC(gradient_variance=0.5), "gradient_variance, which tuning would measure, is given"),
        (SGHMC(gradient_variance={"w": torch.tensor(0.01)}), "gradient_variance, which tuning would measure, is given"),
        (SGNHT(friction=0.0), "SGNHT has no law on a normal posterior that could be computed"),
    ],
)
def test_a_log_line_says_why_a_run_is_not_tuned(kernel: Any, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pyro_scale")
    standardised = {"x": X / SCALES, "y": Y / NOISE}
    posterior = ps.infer(linear, standardised, kernel, batch_size=40, num_samples=1, warmup_steps=1, progress=False)
    assert posterior.settings["tuning"] == {}
    said = [record.getMessage() for record in caplog.records]
    assert f"The run is not tuned, and takes the kernel's default step size: {reason}." in said


def test_a_thermostat_is_given_no_more_noise_than_it_absorbs() -> None:
    posterior = tuned(method="sgnht", batch_size=1, num_samples=2)
    assert posterior.step_size is not None
    assert posterior.step_size**2 * posterior.settings["tuning"]["gradient_noise"] <= 0.2


def test_joint_rows_are_tuned_in_full_batch() -> None:
    """Of more rows than curvature is looked at elsewhere."""

    def walk(y: Tensor) -> None:
        drift = pyro.sample("drift", dist.Normal(0.0, 1.0))
        pyro.factor("steps", dist.Normal(drift, 1.0).log_prob(y[1:] - y[:-1]).sum())

    y = numbers(5000, seed=6).cumsum(0)
    posterior = ps.infer(walk, y, num_samples=200, seed=0, progress=False)
    assert float(posterior.draws["drift"].std()) == pytest.approx(5000**-0.5, rel=0.1)


def test_interrupting_the_pilot_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: Any, *arguments: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("pyro_scale.sample.Run.advance", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tuned()


def test_modes_of_no_probability_are_left_alone() -> None:
    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(y)):
            # a second mode at -mu, lower by 0.65 nats a row
            pyro.sample("obs", dist.Normal(mu.abs(), torch.where(mu > 0, 1.0, 3.0)), obs=y)

    options: dict[str, Any] = {"num_samples": 2, "num_chains": 6, "seed": 0, "progress": False}
    posterior = ps.infer(model, 3 + numbers(100, seed=3), batch_size=10, **options)
    assert posterior.settings["tuning"]["modes"] == 1
    assert bool((posterior.draws["mu"] > 0).all())
