"""NUTS as a reference: exact posteriors, statistics that belong to their draws, and every kind of model."""

from __future__ import annotations

import logging
import math
import sys
import time
from typing import Any

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from model_cases import CASES, DIM, Case, X, Y, normal
from posterior_cases import exact_regression, regression
from pyro_scale.diagnostics import nuts, reference, samplers
from pyro_scale.models import conjugate_regression, eight_schools
from pyro_scale.models import exact_posterior as exact_moments
from torch import Tensor
from torch.func import grad_and_value

from pyro_scale import tree
from pyro_scale.capture import record
from pyro_scale.choice import Choice
from pyro_scale.compile import compile_model
from pyro_scale.errors import ArgumentError, DataError
from pyro_scale.native import NativeError
from pyro_scale.posterior import Posterior

DATA = {"x": X, "y": Y}
STATISTICS = {"lp", "diverging", "step_size", "acceptance_rate"}
both_samplers = pytest.mark.parametrize("sampler", ["pyro", "nutpie"])


def cliff(y: Tensor) -> None:
    """A normal law that falls off a cliff: trajectories that meet it diverge, and now and then one does."""
    x = pyro.sample("x", normal(2))
    with pyro.plate("data", len(y)):
        pyro.factor("fall", -1e5 * (x[0] - 1.2).relu() ** 2 + 0 * y)


def centred(y: Tensor) -> None:
    """Its density rises without bound as the scale vanishes."""
    tau = pyro.sample("tau", dist.HalfNormal(1.0))
    effect = pyro.sample("effect", dist.Normal(0.0, tau).expand([2]).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("obs", dist.Normal(effect.sum(), 1.0), obs=y)


def z_scores(chains: Tensor, mean: Tensor, sd: Tensor) -> np.ndarray:
    """Errors of mean and sd in Monte Carlo standard errors, by ArviZ's effective sample sizes."""
    scores = []
    for index in np.ndindex(mean.shape):
        values = chains[(..., *index)].numpy()
        ess, ess_sd = float(az.ess(values, method="mean")), float(az.ess(values, method="sd"))
        scores.append((values.mean() - float(mean[index])) / (values.std() / math.sqrt(ess)))
        scores.append((values.std() / float(sd[index]) - 1) * math.sqrt(2 * ess_sd))
    return np.array(scores)


@pytest.fixture(scope="module", params=["pyro", "nutpie"])
def run(request: pytest.FixtureRequest) -> Posterior:
    return nuts(regression, DATA, num_samples=400, warmup_steps=200, num_chains=2, seed=0, sampler=request.param)


def test_a_conjugate_posterior(run: Posterior) -> None:
    """Means and sds of three coefficients within 4.5 standard errors: 4e-5 to fail."""
    mean, covariance = exact_regression(X, Y)
    scores = z_scores(run.draws["w"], mean, covariance.diagonal().sqrt())
    print("z scores", scores)
    assert np.abs(scores).max() < 4.5
    correlation = torch.corrcoef(run.draws["w"].flatten(0, 1).T)
    exact = covariance / covariance.diagonal().sqrt() / covariance.diagonal().sqrt()[:, None]
    assert torch.allclose(correlation, exact, atol=0.15)


@both_samplers
def test_a_conjugate_posterior_with_a_bounded_site(sampler: Any) -> None:
    """The inverse gamma variance is seen through a logarithm: its Jacobian counts. 5e-5 to fail."""
    run = nuts(conjugate_regression, DATA, num_samples=400, warmup_steps=200, num_chains=2, seed=1, sampler=sampler)
    for name, moments in exact_moments(X, Y).items():
        scores = z_scores(run.draws[name], moments.mean, moments.sd)
        print(name, scores)
        assert np.abs(scores).max() < 4.5


def test_statistics_belong_to_their_draws(run: Posterior) -> None:
    assert set(run.sample_stats) == STATISTICS
    assert all(value.shape == (2, 400) for value in run.sample_stats.values())
    compiled = run.compiled
    batch = compiled.batch()
    for chain in range(2):
        for draw in (0, 1, 57, 399):
            position = compiled.unconstrain({"w": run.draws["w"][chain, draw]})
            expected = float(compiled.log_posterior(position, batch))
            assert float(run.sample_stats["lp"][chain, draw]) == pytest.approx(expected, rel=1e-9)
    acceptance = run.sample_stats["acceptance_rate"]
    assert (acceptance >= 0).all() and (acceptance <= 1).all()
    assert 0.6 < acceptance.mean() < 0.98  # adapted to 0.8
    assert run.sample_stats["diverging"].dtype == torch.bool
    assert not run.sample_stats["diverging"].any()


def test_what_a_run_tells_of_itself(run: Posterior) -> None:
    assert run.step_size == pytest.approx(float(run.sample_stats["step_size"][:, -1].mean()))
    assert 1200 < run.num_steps < 10_000  # gradients of a chain: from 2 to 16 for each of 600 iterations
    assert list(run.timing) == ["prepare", "capture", "compile", "sample", "constrain"]
    assert run.settings["steps_run"] in ("captured", "compiled")
    assert run.settings["whitened"] is True
    assert run.settings["method"] in ("NUTS (pyro)", "NUTS (nutpie)")
    assert (run.settings["num_chains"], run.settings["num_samples"], run.settings["warmup_steps"]) == (2, 400, 200)
    assert len(az.summary(run.idata)) == DIM
    chains = run.draws["w"].mean(1)
    assert not torch.allclose(chains[0], chains[1], atol=1e-6)


@both_samplers
def test_seeds(sampler: Any) -> None:
    before = torch.get_rng_state()
    one, again, other = (
        nuts(regression, DATA, num_samples=8, warmup_steps=8, num_chains=2, seed=seed, sampler=sampler)
        for seed in (3, 3, 4)
    )
    assert torch.equal(one.draws["w"], again.draws["w"])
    assert torch.equal(one.sample_stats["lp"], again.sample_stats["lp"])
    assert not torch.equal(one.draws["w"], other.draws["w"])
    assert torch.equal(torch.get_rng_state(), before)
    assert nuts(regression, DATA, num_samples=1, num_chains=1, warmup_steps=2).settings["seed"] >= 0


@pytest.fixture(scope="module")
def diverging() -> tuple[Posterior, list[list[int]]]:
    """A run on the cliff, and what Pyro itself says about the divergences of each of its chains."""
    said: list[list[int]] = []

    class Watched(samplers.MCMC):
        def run(self, *args: Any, **kwargs: Any) -> None:
            super().run(*args, **kwargs)
            said.append(list(self.diagnostics()["divergences"]["chain 0"]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samplers, "MCMC", Watched)
        run = nuts(cliff, {"y": Y}, num_samples=60, warmup_steps=30, num_chains=3, seed=2)
    return run, said


def test_divergences_land_on_their_draws_and_chains(diverging: tuple[Posterior, list[list[int]]]) -> None:
    run, said = diverging
    found = [row.nonzero()[:, 0].tolist() for row in run.sample_stats["diverging"]]
    print("divergences", found)
    assert found == said
    assert len(set(map(tuple, found))) > 1  # different chains, different divergences
    flagged = run.idata["sample_stats"]["diverging"].values
    assert np.array_equal(flagged, run.sample_stats["diverging"].numpy())


def test_without_a_mode_it_runs_unwhitened_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "pyro_scale"):
        run = nuts(centred, {"y": Y}, num_samples=5, warmup_steps=20, num_chains=1, seed=0)
    assert "NUTS runs in the unconstrained coordinates: no posterior mode was found" in caplog.text
    assert run.settings["whitened"] is False
    assert torch.isfinite(run.draws["effect"]).all()
    position = run.compiled.unconstrain({name: value[0, 2] for name, value in run.draws.items()})
    expected = float(run.compiled.log_posterior(position, run.compiled.batch()))
    assert float(run.sample_stats["lp"][0, 2]) == pytest.approx(expected, rel=1e-9)


KINDS = [
    "ImproperUniform", "supports", "LKJCholesky, multivariate normal", "eight schools", "ordered logistic",
    "Gaussian process", "PyroModule", "mixture", "prior from data", "several observed sites", "only a factor",
    "deterministic sites",
]  # fmt: skip


@pytest.mark.parametrize("case", [case for case in CASES if case.name in KINDS], ids=lambda case: case.name)
def test_every_kind_of_model(case: Case) -> None:
    run = nuts(case.model, case.data, constants=case.constants, num_samples=6, warmup_steps=6, num_chains=2, seed=0)
    assert list(run.draws) == run.compiled.kept
    for name, value in run.draws.items():
        site = run.compiled.sites[name]
        assert value.shape == (2, 6, *site.shape)
        assert torch.isfinite(value).all()
    position = run.compiled.unconstrain({name: value[1, 3] for name, value in run.draws.items()})
    assert torch.isfinite(tree.ravel(position)).all()  # inside the support
    expected = float(run.compiled.log_posterior(position, run.compiled.batch()))
    tolerance = 1e-6 if run.compiled.data.dtype == torch.float64 else 1e-3
    assert float(run.sample_stats["lp"][1, 3]) == pytest.approx(expected, rel=tolerance, abs=tolerance)


def test_local_latent_sites_have_the_axes_of_their_rows() -> None:
    problem = eight_schools()
    run = nuts(problem.model, problem.data, num_samples=4, warmup_steps=4, num_chains=1, seed=0)
    assert run.draws["theta_trans"].shape == (1, 4, 8)
    mu, tau = run.draws["mu"][..., None], run.draws["tau"][..., None]
    assert torch.allclose(run.draws["theta"], mu + tau * run.draws["theta_trans"])
    assert run.idata["posterior"]["theta"].dims == ("chain", "draw", "schools")


@both_samplers
def test_float32(sampler: Any) -> None:
    data = {"x": X.float(), "y": Y.float()}
    run = nuts(regression, data, num_samples=100, warmup_steps=100, num_chains=1, seed=0, sampler=sampler)
    mean, covariance = exact_regression(X, Y)
    assert run.draws["w"].dtype == torch.float32
    errors = (run.draws["w"][0].mean(0) - mean) / covariance.diagonal().sqrt()
    assert errors.abs().max() < 0.5  # 5 standard errors of 100 independent draws
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("sampler, warmup_steps", [("pyro", 0), ("pyro", 1), ("nutpie", 2)])
@pytest.mark.parametrize("num_samples", [1, 3])
def test_short_runs(sampler: Any, warmup_steps: int, num_samples: int) -> None:
    run = nuts(
        regression, DATA, num_samples=num_samples, warmup_steps=warmup_steps, num_chains=2, seed=0, sampler=sampler
    )
    assert run.draws["w"].shape == (2, num_samples, DIM)
    assert all(value.shape == (2, num_samples) for value in run.sample_stats.values())
    assert all(torch.isfinite(value.double()).all() for value in run.sample_stats.values())


def test_as_many_warm_up_iterations_as_draws_by_default() -> None:
    assert nuts(regression, DATA, num_samples=4, num_chains=1, seed=0).settings["warmup_steps"] == 4


def test_where_the_density_fails_it_is_rejected() -> None:
    def half(vector: Tensor) -> tuple[Tensor, Tensor]:
        if vector[0] > 2:
            torch.linalg.cholesky(-torch.eye(2))
        value = torch.where(vector[0] < -1, torch.nan, -vector.square().sum() / 2)
        gradient = torch.where(vector == 1.5, torch.inf, -vector)
        return gradient, value

    potential = samplers.Potential(half, torch.zeros(1).double())
    for at in (3.0, -2.0, 1.5):
        gradient, value = potential.evaluate(torch.tensor([at]).double())
        assert value == -torch.inf and gradient == 0
    gradient, value = potential.evaluate(torch.tensor([0.5]).double())
    assert value == -0.125 and gradient == -0.5
    assert potential.calls == 4


@both_samplers
@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_wall_of_failures_is_a_bound(sampler: Any, jit_compile: bool) -> None:
    """A normal law cut off at 0 by a matrix that is not positive definite there: mean sqrt(2 / pi) of 800 draws."""

    def cut(vector: Tensor) -> tuple[Tensor, Tensor]:
        root = torch.linalg.cholesky(vector[:, None])
        return -vector, -vector.square().sum() / 2 + 0 * root.sum()

    recorded = record(cut, torch.ones(1).double())
    potential = samplers.Potential(recorded, torch.ones(1).double(), jit_compile=jit_compile)
    potential.expect(1)
    assert potential.choice.how == ("compiled" if jit_compile else "captured")
    gradient, value = potential.evaluate(-torch.ones(1).double())
    assert value == -torch.inf and gradient == 0
    chain = samplers.pyro_chain if sampler == "pyro" else samplers.nutpie_chain
    start = torch.ones(1).double()
    draws = torch.stack([chain(potential, start, seed, 400, 100, lambda _: None).draws[:, 0] for seed in (1, 2)])
    ess = float(az.ess(draws.numpy(), method="mean"))
    error = (draws.mean() - math.sqrt(2 / math.pi)) / draws.std() * math.sqrt(ess)
    print("z", float(error), "ess", ess)
    assert (draws > 0).all()
    assert abs(error) < 4.5  # 7e-6 to fail


def test_a_model_with_trained_parameters() -> None:
    layer = torch.nn.utils.skip_init(torch.nn.Linear, DIM, 2, dtype=torch.float64)
    torch.nn.init.constant_(layer.weight, 0.3)
    torch.nn.init.constant_(layer.bias, 0.1)

    def model(x: Tensor, y: Tensor) -> None:
        w = pyro.sample("w", normal(2))
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(layer(x) @ w, 1.0), obs=y)

    run = nuts(model, DATA, num_samples=5, warmup_steps=5, num_chains=1, seed=0)
    assert not run.draws["w"].requires_grad
    assert layer.weight.grad is None


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "sampler": ({"sampler": "stan"}, "sampler is 'stan'; it must be 'pyro' or 'nutpie'"),
    "no draws": ({"num_samples": 0}, "num_samples is 0; it must be a whole number of at least 1"),
    "no chains": ({"num_chains": 0}, "num_chains is 0; it must be a whole number of at least 1"),
    "warm-up": ({"warmup_steps": -1}, "warmup_steps is -1; it must be a whole number of at least 0"),
    "fraction": ({"num_samples": 2.5}, "num_samples is 2.5"),
    "seed": ({"seed": -1}, "seed is -1"),
    "jit_compile": ({"jit_compile": "yes"}, "jit_compile is 'yes'; it must be True, False or 'auto'"),
    "nutpie": ({"sampler": "nutpie", "warmup_steps": 1}, "warmup_steps is 1; sampler='nutpie' needs at least 2"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name: str) -> None:
    arguments, message = BAD[name]
    with pytest.raises(ArgumentError, match=message):
        nuts(regression, DATA, **arguments)


def test_bad_data() -> None:
    with pytest.raises(DataError, match="holds NaN"):
        nuts(regression, {"x": X * torch.nan, "y": Y})
    with pytest.raises(ArgumentError, match="'x' is missing"):
        nuts(regression, {"y": Y})


def test_without_nutpie_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nutpie", None)
    with pytest.raises(ArgumentError, match=r"needs the package nutpie: pip install 'pyro-scale\[nutpie\]'"):
        nuts(regression, DATA, sampler="nutpie")


def groups_at_zero(group: Tensor, y: Tensor) -> None:
    """Groups around 0 with an unknown sd: the density has a mode at sd 0, far from where its mass is."""
    s = pyro.sample("s", dist.LogNormal(-1.0, 1.0))
    with pyro.plate("groups", 8):
        a = pyro.sample("a", dist.Normal(0.0, s))
    with pyro.plate("data", len(y)):
        pyro.sample("obs", dist.Normal(a[group], 1.0), obs=y)


def test_a_mode_that_does_not_describe_the_posterior_is_not_whitened_at(caplog: pytest.LogCaptureFixture) -> None:
    """The law of log s from its marginal likelihood on a grid: group means are normal given s."""
    generator = torch.Generator().manual_seed(3)
    group = torch.arange(40) % 8
    y = torch.randn(40, generator=generator, dtype=torch.float64) * 1.2
    means = torch.stack([y[group == g].mean() for g in range(8)])
    log_s = torch.linspace(-8, 3, 4001, dtype=torch.float64)
    law = torch.distributions.Normal(0.0, (log_s.exp().square() + 1 / 5).sqrt()[:, None])
    log_density = law.log_prob(means).sum(1) + torch.distributions.Normal(-1.0, 1.0).log_prob(log_s)
    weights = log_density.softmax(0)
    mean = weights @ log_s
    sd = (weights @ (log_s - mean).square()).sqrt()
    with caplog.at_level(logging.INFO, "pyro_scale"):
        run = nuts(groups_at_zero, {"group": group, "y": y}, num_samples=400, warmup_steps=300, num_chains=2, seed=0)
    assert run.settings["whitened"] is False
    assert "the curvature at the mode does not describe the posterior" in caplog.text
    found = run.draws["s"].log()
    error = float((found.mean() - mean) / sd)
    print("error in sds", error, "sd ratio", float(found.std() / sd))
    assert abs(error) < 0.5  # about 30 effective draws or more: 3 standard errors
    assert 0.6 < float(found.std() / sd) < 1.6


def test_chains_start_around_modes_of_their_own() -> None:
    def two_modes(y: Tensor) -> None:
        x = pyro.sample("x", dist.Normal(0.0, 3.0))
        with pyro.plate("data", len(y)):
            pyro.sample("obs", dist.Normal(x.square(), 0.2), obs=y)

    data = {"y": torch.full((20,), 1.0, dtype=torch.float64)}
    run = nuts(two_modes, data, num_samples=50, warmup_steps=50, num_chains=6, seed=0)
    signs = run.draws["x"].sign().mean(1)
    assert (signs == 1).any() and (signs == -1).any()


def test_divergences_are_told(caplog: pytest.LogCaptureFixture) -> None:
    data = {"y": torch.zeros(2, dtype=torch.float64)}
    with caplog.at_level(logging.WARNING, "pyro_scale"):
        run = nuts(centred, data, num_samples=100, warmup_steps=20, num_chains=1, seed=1)
    count = int(run.sample_stats["diverging"].sum())
    assert count > 0
    assert f"divergences is {count:.3f}, limit 0.000: " in caplog.text


def test_ctrl_c_returns_the_chains_that_are_complete(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = nuts(regression, DATA, num_samples=20, warmup_steps=20, num_chains=2, seed=0)
    calls = 0
    evaluate = samplers.Potential.evaluate

    def interrupted(self: samplers.Potential, vector: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal calls
        calls += 1
        if calls > after:
            raise KeyboardInterrupt
        return evaluate(self, vector)

    monkeypatch.setattr(samplers.Potential, "evaluate", interrupted)
    after = 2 * whole.num_steps - 5
    run = nuts(regression, DATA, num_samples=20, warmup_steps=20, num_chains=2, seed=0)
    assert torch.equal(run.draws["w"], whole.draws["w"][:1])
    assert "1 of 2 chains are complete" in caplog.text
    calls, after = 0, 10
    with pytest.raises(KeyboardInterrupt):
        nuts(regression, DATA, num_samples=20, warmup_steps=20, num_chains=2, seed=0)


def test_the_compiled_log_posterior_is_the_recorded_one() -> None:
    """Values and gradients to 1e-10 of their size."""
    compiled = compile_model(conjugate_regression, DATA)
    batch = compiled.batch()
    start = compiled.initial_position(0)
    example = tree.ravel(start)

    def log_posterior(vector: Tensor) -> Tensor:
        return compiled(tree.unravel(vector, tree.shapes(start)), batch)

    recorded = record(grad_and_value(log_posterior), example)
    potential = samplers.Potential(recorded, example, jit_compile=True)
    potential.expect(1)
    assert potential.choice.how == "compiled"
    generator = torch.Generator().manual_seed(0)
    for scale in (0.1, 1.0, 3.0):
        vector = scale * torch.randn(example.shape, generator=generator, dtype=torch.float64)
        gradient, value = recorded(vector)
        found = potential.evaluate(vector)
        torch.testing.assert_close(found[1], value, rtol=1e-10, atol=0)
        torch.testing.assert_close(found[0], gradient, rtol=1e-10, atol=1e-10 * float(gradient.abs().max()))


@pytest.fixture
def native_calls(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Where compiled log posteriors are evaluated."""
    calls: list[Tensor] = []
    compiled_function = samplers.compiled_function

    def watched(*arguments: Any) -> Any:
        function = compiled_function(*arguments)

        def call(vector: Tensor, *fixed: Any) -> Any:
            calls.append(vector)
            return function(vector, *fixed)

        return call

    monkeypatch.setattr(samplers, "compiled_function", watched)
    return calls


def assert_same_run(found: Posterior, expected: Posterior) -> None:
    assert (found.settings["steps_run"], expected.settings["steps_run"]) == ("compiled", "captured")
    assert found.timing["compile"] > 0 and expected.timing["compile"] == 0
    assert found.num_steps == expected.num_steps
    assert torch.equal(found.sample_stats["diverging"], expected.sample_stats["diverging"])
    for name in expected.draws:
        torch.testing.assert_close(found.draws[name], expected.draws[name], rtol=1e-7, atol=1e-9)


@both_samplers
def test_compiled_chains_are_the_recorded_ones(sampler: Any, native_calls: list[Tensor]) -> None:
    sizes: dict[str, Any] = {"num_samples": 8, "warmup_steps": 4, "num_chains": 2, "seed": 5, "sampler": sampler}
    began = time.perf_counter()
    found = nuts(conjugate_regression, DATA, jit_compile=True, **sizes)
    whole = time.perf_counter() - began
    assert 0.9 * whole < sum(found.timing.values()) <= whole
    assert len(native_calls) == pytest.approx(2 * found.num_steps, abs=1)
    assert_same_run(found, nuts(conjugate_regression, DATA, jit_compile=False, **sizes))


@both_samplers
def test_compilation_in_the_middle_of_a_chain(
    sampler: Any, native_calls: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: dict[str, Any] = {"num_samples": 40, "warmup_steps": 80, "num_chains": 1, "seed": 6, "sampler": sampler}
    expected = nuts(conjugate_regression, DATA, jit_compile=False, **sizes)
    calls_left: list[float] = []

    def after_a_while(self: Choice, remaining: float) -> bool:
        calls_left.append(remaining)
        return not self.is_compiled and 0 < remaining < 0.9 * calls_left[0]

    monkeypatch.setattr(samplers, "POLL_SECONDS", 1e-3)
    monkeypatch.setattr(Choice, "now", after_a_while)
    found = nuts(conjugate_regression, DATA, jit_compile="auto", **sizes)
    assert_same_run(found, expected)
    assert 0 < len(native_calls) < found.num_steps


def test_what_is_left_of_a_run_is_estimated_from_the_trees_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two chains of 100 iterations of 15 gradients: 7 are guessed at first, and forgotten in the course."""
    asked: list[float] = []
    monkeypatch.setattr(samplers.Potential, "expect", lambda self, remaining: asked.append(remaining))
    potential = samplers.Potential(lambda vector: (-vector, -vector.square().sum() / 2), torch.zeros(1))

    def chain(num_samples: int, warmup_steps: int, tick: samplers.Tick) -> samplers.Run:
        for _ in range(num_samples + warmup_steps):
            for _ in range(15):
                potential.evaluate(torch.zeros(1))
            tick(1)
        return samplers.Run(torch.zeros(num_samples, 1), {})

    assert len(reference._run_chains([chain, chain], potential, 60, 40, False)) == 2
    assert asked[0] == 200 * 7
    assert asked[20] == pytest.approx(180 * 11)
    assert asked[150] == pytest.approx(50 * 15, rel=0.1)
    assert asked[-1] == 0


def test_what_cannot_be_compiled_runs_as_recorded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def without_compiler(*arguments: Any) -> Any:
        raise NativeError("no C++ compiler is found")

    monkeypatch.setattr(samplers, "compiled_function", without_compiler)
    with caplog.at_level(logging.INFO, "pyro_scale"):
        run = nuts(regression, DATA, num_samples=3, num_chains=2, seed=0, jit_compile=True)
    assert run.settings["steps_run"] == "captured"
    assert caplog.messages == ["Gradients are not compiled, and run captured. no C++ compiler is found."]


def test_a_model_that_cannot_be_recorded_runs_eagerly(caplog: pytest.LogCaptureFixture) -> None:
    def branching(y: Tensor) -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("obs", dist.Normal(x if x > 0 else 2 * x, 1.0), obs=y)

    with caplog.at_level(logging.INFO, "pyro_scale"):
        run = nuts(branching, {"y": Y}, num_samples=4, num_chains=1, seed=0, jit_compile=True)
    assert run.settings["steps_run"] == "eager"
    assert sum("The log posterior runs through Pyro's handlers" in line for line in caplog.messages) == 1
    assert "not compiled" not in caplog.text


def test_a_chain_in_another_thread_tells_how_far_it_is_and_stops_on_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samplers, "POLL_SECONDS", 1e-3)
    start = torch.ones(2).double()
    potential = samplers.Potential(lambda vector: (-vector, -vector.square().sum() / 2), start)
    told: list[int] = []
    samplers.nutpie_chain(potential, start, 0, 300, 100, told.append)
    assert sum(told) == 400
    assert len(told) > 2

    def interrupted(iterations: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        samplers.nutpie_chain(potential, start, 0, 10**6, 100, interrupted)
    calls = potential.calls
    time.sleep(0.05)
    assert potential.calls == calls
