"""Pareto k of Gaussian approximations: shapes and densities in closed form, and draws resampled to the posterior."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from posterior_cases import generator, posterior_of
from pyro_scale.diagnostics import khat
from pyro_scale.diagnostics.importance import weighted_positions
from pyro_scale.diagnostics.psis import smoothed
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from pyro_scale import hessian
from pyro_scale.compile import CompiledModel, compile_model
from pyro_scale.errors import ArgumentError, MissingModelError
from pyro_scale.gaussians import DiagonalGaussian, sample
from pyro_scale.posterior import Posterior
from pyro_scale.types import Position

Y = torch.linspace(-1.0, 2.0, 24, dtype=torch.float64)
MEAN, SD = float(Y.sum() / 25), 0.2


def known_variance(y: Tensor) -> None:
    """The posterior is Normal(sum(y) / (N + 1), 1 / (N + 1))."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.deterministic("twice", 2 * mu)
    with pyro.plate("data", len(y)):
        pyro.sample("obs", dist.Normal(mu, 1.0), obs=y)


def scaled(y: Tensor) -> None:
    """A matrix site, and one whose logarithm is the position."""
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2, 3]).to_event(2))
    s = pyro.sample("s", dist.HalfNormal(2.0))
    with pyro.plate("data", len(y)):
        pyro.sample("obs", dist.Normal(w.sum(), s), obs=y)


def local(y: Tensor) -> None:
    with pyro.plate("data", len(y)):
        value = pyro.sample("value", dist.Normal(0.0, 1.0))
        pyro.sample("obs", dist.Normal(value, 0.5), obs=y)


def normal(value: Tensor, mean: Any, sd: Any) -> Tensor:
    sd = torch.as_tensor(sd, dtype=torch.float64)
    return -(((value - mean) / sd) ** 2) / 2 - sd.log() - math.log(2 * math.pi) / 2


def around(mean: Position, sd: float) -> DiagonalGaussian:
    """Independent normals around a center, in unconstrained space."""
    return DiagonalGaussian(mean, {name: torch.full_like(leaf, sd) for name, leaf in mean.items()})


def made(compiled: CompiledModel, approximation: Any) -> Posterior:
    draws = {name: torch.zeros(1, 2, *compiled.sites[name].shape) for name in compiled.latent}
    posterior = posterior_of(compiled, draws)
    posterior.approximation = approximation
    return posterior


def narrower(factor: float, **compiling: Any) -> Posterior:
    mean = {"mu": torch.tensor(MEAN, dtype=torch.float64)}
    return made(compile_model(known_variance, {"y": Y}, **compiling), around(mean, SD / factor))


@pytest.mark.parametrize("factor", [1.2, 1.5, 1.75])
def test_the_shape_is_that_of_two_normals(factor: float) -> None:
    """p is `factor` times as wide as q: weights exp(c x^2 / 2) have a tail of shape 1 - 1 / factor^2."""
    ks = [khat(narrower(factor), num_samples=4000, seed=seed).k for seed in range(6)]
    print(ks)
    assert abs(np.mean(ks) - (1 - 1 / factor**2)) < 0.17  # as in tests/test_psis.py


def test_a_wider_and_an_exact_approximation_pass() -> None:
    wide, exact = khat(narrower(1 / 1.3)), khat(narrower(1.0))
    assert wide.k < 0 and wide.passed and "The approximation is close" in str(wide)
    assert exact.k < 0.3 and exact.effective_size == pytest.approx(2000)  # rounding is all there is to fit


@pytest.mark.parametrize("batch_size", [None, 5])
@pytest.mark.parametrize("model", [known_variance, scaled, local])
def test_ratios_are_those_of_unconstrained_densities_of_all_rows(
    model: Callable[..., None], batch_size: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hessian, "BLOCK_ROWS", 7)
    compiled = compile_model(model, {"y": Y}, batch_size=batch_size)
    mean = {name: torch.full(shape, 0.3, dtype=torch.float64) for name, shape in compiled.latent.items()}
    positions, ratios = weighted_positions(compiled, around(mean, 0.1), 30, 5)
    assert {name: leaf.shape[1:] for name, leaf in positions.items()} == compiled.latent
    expected = []
    for i in range(30):
        at = {name: leaf[i] for name, leaf in positions.items()}
        density = torch.zeros((), dtype=torch.float64)
        for name, value in at.items():
            density -= normal(value, 0.3, 0.1).sum()
            if name == "s":
                density += math.log(2) + normal(value.exp(), 0.0, 2.0) + value
            else:
                density += normal(value, 0.0, 1.0).sum()
        center = {"known_variance": "mu", "scaled": "w", "local": "value"}[model.__name__]
        loc = at[center] if center == "value" else at[center].sum()
        sd = {"mu": 1.0, "value": 0.5}.get(center) or at["s"].exp()
        expected.append(float(density + normal(Y, loc, sd).sum()))
    np.testing.assert_allclose(ratios, expected, rtol=1e-10)


def test_all_rows_of_a_loader_count_once() -> None:
    """In whatever order and batches they come."""
    loader = DataLoader(TensorDataset(Y), batch_size=7, shuffle=True, generator=generator(0))
    mean = {"mu": torch.tensor(MEAN, dtype=torch.float64)}
    streamed = made(compile_model(known_variance, loader), around(mean, SD / 1.5))
    found, whole = khat(streamed, resampled=20), khat(narrower(1.5), resampled=20)
    assert found.k == pytest.approx(whole.k, abs=1e-8) and found.draws["mu"].shape == (1, 20)


def test_resampled_draws_are_of_the_posterior() -> None:
    """q is twice as wide and off by half an sd; 5000 draws of 20,000 err by 0.02 sds at most: within three."""
    q = around({"mu": torch.tensor(MEAN + SD / 2, dtype=torch.float64)}, 2 * SD)
    posterior = made(compile_model(known_variance, {"y": Y}), q)
    found = khat(posterior, num_samples=20_000, resampled=5000, seed=1)
    mu = found.draws["mu"]
    assert mu.shape == (1, 5000) and torch.equal(found.draws["twice"], 2 * mu)
    print((float(mu.mean()) - MEAN) / SD, float(mu.std()) / SD)
    assert abs(float(mu.mean()) - MEAN) / SD < 0.065
    assert abs(float(mu.std()) / SD - 1) < 0.05
    z = (sample(q, 20_000, generator(0))["mu"] - MEAN) / SD
    weights = (normal(z, 0.0, 1.0) - normal(z, 0.5, 2.0)).exp()
    assert found.effective_size == pytest.approx(float(weights.sum() ** 2 / weights.square().sum()), rel=0.05)
    assert found.draws.keys() == {"mu", "twice"} and not khat(posterior).draws


def test_the_same_seed_gives_the_same_and_global_state_stays() -> None:
    one, same, other = (khat(narrower(1.5), resampled=40, seed=seed) for seed in (1, 1, 2))
    assert one.k == same.k != other.k
    assert torch.equal(one.draws["mu"], same.draws["mu"])


def test_in_float32() -> None:
    mean = {"mu": torch.tensor(MEAN)}
    q = around(mean, SD / 1.5)
    compiled = compile_model(known_variance, {"y": Y.float()})
    positions, ratios = weighted_positions(compiled, q, 4000, 0)
    mu, y = positions["mu"].double()[:, None], Y.float().double()
    expected = (
        normal(mu, 0.0, 1.0).squeeze(1) + normal(y, mu, 1.0).sum(1) - normal(mu[:, 0], mean["mu"].double(), SD / 1.5)
    )
    np.testing.assert_allclose(ratios, expected, atol=1e-4)
    assert float(smoothed(ratios)[1]) == pytest.approx(float(smoothed(expected.numpy())[1]), abs=0.01)
    found = khat(made(compiled, q), num_samples=4000, resampled=10)
    assert found.draws["mu"].dtype == torch.float32


def test_a_schedule_that_may_have_ended_at_1_is_judged() -> None:
    posterior = narrower(1.0)
    posterior.settings["temperature"] = None
    assert khat(posterior).passed


def test_verdicts_in_words() -> None:
    bad = khat(narrower(3.0))
    assert not bad.passed and bad.k > 0.7
    assert "Use a richer one (dense in place of" in " ".join(str(bad).split())
    fair = khat(narrower(1.5), num_samples=4000, seed=0)
    assert 0.5 < fair.k < 0.7 and "resampled=n gives such draws" in " ".join(str(fair).split())
    assert f"Pareto k is {fair.k:.2f}, limit 0.70; 4000 weighted draws are worth" in str(fair)


class Nowhere(DiagonalGaussian):
    def log_prob(self, position: Position) -> Tensor:
        return super().log_prob(position) + math.nan


def unloaded() -> Posterior:
    posterior = narrower(1.0)
    posterior.compiled = None
    return posterior


def warm() -> Posterior:
    posterior = narrower(1.0)
    posterior.settings["temperature"] = 2.0
    return posterior


MU = {"mu": torch.zeros((), dtype=torch.float64)}
BAD: dict[str, tuple[Callable[[], Any], dict[str, Any], type[Exception], str]] = {
    "draws": (lambda: MU, {}, ArgumentError, "khat got a dict; it takes a posterior"),
    "of MCMC": (
        lambda: made(compile_model(known_variance, {"y": Y}), None), {}, ArgumentError,
        "khat judges a Gaussian approximation by its density, and by hand made none. posterior.health has its",
    ),
    "no model": (unloaded, {}, MissingModelError, "khat runs the model, and this posterior was loaded without it"),
    "warm": (warm, {}, ArgumentError, "khat weights draws as those of .* temperature of this one is 2. Fit again with"),
    "few": (lambda: narrower(1.0), {"num_samples": 24}, ArgumentError, "num_samples is 24; .* at least 25"),
    "none resampled": (lambda: narrower(1.0), {"resampled": 0}, ArgumentError, "resampled is 0; .* at least 1"),
    "seed": (lambda: narrower(1.0), {"seed": 0.5}, ArgumentError, "seed is 0.5"),
    "no density": (
        lambda: made(compile_model(known_variance, {"y": Y}), Nowhere(MU, MU)), {}, ArgumentError,
        "finite density at 0 of 2000 draws from the approximation; at least 25 are needed",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_refused(name: str) -> None:
    make, arguments, error, message = BAD[name]
    with pytest.raises(error, match=message):
        khat(make(), **arguments)
