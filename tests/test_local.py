"""Sites with a value for each row, under minibatches: against a loop by hand and exact posteriors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import local_models
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.func import grad, grad_and_value

import pyro_scale as ps
from pyro_scale.collected import Plan
from pyro_scale.compile import CompiledModel, compile_model
from pyro_scale.errors import ArgumentError, MinibatchError, MissingModelError, NonFiniteError
from pyro_scale.inputs import Inputs
from pyro_scale.kernels import SGHMC, SGLD
from pyro_scale.local import LocalTarget
from pyro_scale.progress import Reporter
from pyro_scale.sample import Run, run_chains
from pyro_scale.types import BoundKernel, Info, Position

N, BATCH = 30, 6
NOISE, SPREAD = 1.0, 0.7
GENERATOR = torch.Generator().manual_seed(3)
Y = 0.5 + math.hypot(NOISE, SPREAD) * torch.randn(N, generator=GENERATOR, dtype=torch.float64)
MATRIX = torch.randn(N, 2, generator=GENERATOR, dtype=torch.float64)
DATA = {"y": Y}
SEEDS = (11, 12)


def hierarchy(y: Tensor) -> None:
    """Conjugate: every site is normal in the posterior."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, SPREAD))
        pyro.deterministic("twice", 2 * theta)
        pyro.sample("obs", dist.Normal(theta, NOISE), obs=y)


def log_density(mu: Tensor, theta: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Of `hierarchy`, written out: what enters once, and a value for each row; without the constants."""
    rows = -((theta - mu) ** 2) / (2 * SPREAD**2) - (y - theta) ** 2 / (2 * NOISE**2)
    return -(mu**2) / 2, rows


class Exact(NamedTuple):
    """Posterior moments of `hierarchy`."""

    mu: tuple[float, float]
    theta: tuple[Tensor, float]


def exact(y: Tensor) -> Exact:
    variance = NOISE**2 + SPREAD**2
    posterior = 1 / (1 + len(y) / variance)
    mean = posterior * float(y.sum()) / variance
    given_mu = 1 / (1 / NOISE**2 + 1 / SPREAD**2)
    pull = given_mu / SPREAD**2
    theta = given_mu * (y / NOISE**2 + mean / SPREAD**2)
    return Exact((mean, math.sqrt(posterior)), (theta, math.sqrt(given_mu + pull**2 * posterior)))


def starts(model: CompiledModel, num_chains: int) -> Position:
    one = [model.initial_position(seed) for seed in range(num_chains)]
    return {name: torch.stack([position[name] for position in one]) for name in one[0]}


def run(model: CompiledModel, kernel: Any = None, keep: tuple[str, ...] = ("mu", "theta"), **wanted: Any) -> Any:
    plan = Plan(**{"num_samples": 12, "warmup_steps": 3, "thinning": 2, "num_chains": 2, "keep": keep, **wanted})
    kernel = SGHMC(step_size=0.1) if kernel is None else kernel
    return run_chains(model, kernel, plan, starts(model, plan.num_chains), SEEDS)


# The steps


def test_steps_are_those_of_a_loop_by_hand() -> None:
    """Rows of the batch move by their own gradient, in units of sqrt(N); what they share by N/n times the batch's."""
    model, step_size, friction = compile_model(hierarchy, DATA, batch_size=BATCH), 0.1, 1.0
    found = run(model, num_samples=40, warmup_steps=0, thinning=1)
    one = {"mu": torch.Size([]), "theta": torch.Size([BATCH])}
    inputs = Inputs(model, SGHMC(step_size=step_size), one, 2, 40, SEEDS)
    whole = inputs.noise(2, shapes={"mu": torch.Size([]), "theta": torch.Size([N])})
    start, unit = starts(model, 2), math.sqrt(N)
    chunk = inputs.draw(0)
    for chain in range(2):
        mu, theta = start["mu"][chain].clone(), start["theta"][chain].clone()
        mu_momentum, momentum = whole["mu"][chain] / unit, whole["theta"][chain] / unit
        for step in range(40):
            assert chunk.indices is not None
            rows = chunk.indices[step, chain]
            at_mu, at_rows = mu.clone().requires_grad_(), theta[rows].clone().requires_grad_()
            once, each = log_density(at_mu, at_rows, Y[rows])
            (slope,) = torch.autograd.grad(once + N / BATCH * each.sum(), at_mu, retain_graph=True)
            (own,) = torch.autograd.grad(each.sum(), at_rows)
            noise = math.sqrt(2 * friction * step_size / N)
            keep = 1 - step_size * friction
            mu_momentum = keep * mu_momentum + step_size * slope / N + noise * chunk.noise["mu"][step, chain]
            moved = keep * momentum[rows] + step_size * own * unit / N + noise * chunk.noise["theta"][step, chain]
            momentum[rows] = moved
            mu = mu + step_size * mu_momentum
            theta[rows] = theta[rows] + step_size * unit * moved
            torch.testing.assert_close(found.draws["mu"][chain, step], mu, rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(found.draws["theta"][chain, step], theta, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("model", [local_models.crossed, local_models.true_covariate], ids=["crossed", "positive"])
def test_rows_have_the_gradient_of_full_batch(model: Any) -> None:
    data = {"y": MATRIX} if model is local_models.crossed else {"x": Y.exp(), "y": Y}
    full, part = compile_model(model, data), compile_model(model, data, batch_size=BATCH)
    position, batch = part.initial_position(1), part.batch(torch.arange(4, 4 + BATCH))
    target = LocalTarget(part)
    here = target.coordinates(part.at_rows(position, batch.indices))
    gradient, value = grad_and_value(target)(here, batch)
    expected = grad(full.log_posterior)(position, full.batch())
    for name in part.local:
        rows = expected[name].index_select(part.local[name], batch.indices)
        torch.testing.assert_close(gradient[name], rows * math.sqrt(N), rtol=1e-10, atol=1e-10)
    at_rows = part.at_rows(position, batch.indices)
    torch.testing.assert_close(value, part.log_posterior(at_rows, batch))
    shared = grad(part.log_posterior)(at_rows, batch)
    for name in shared.keys() - part.local.keys():
        torch.testing.assert_close(gradient[name], shared[name])


@pytest.mark.parametrize(
    ("model", "data"),
    [
        (hierarchy, DATA),
        (local_models.crossed, {"y": MATRIX}),
        (local_models.shares, {"y": torch.nn.functional.one_hot(torch.arange(N) % 2, 2) * 5}),
        (local_models.given_discrete, DATA),
    ],
    ids=["vector", "second axis", "chain by chain", "discrete prior"],
)
@pytest.mark.parametrize("kernel", [SGHMC(step_size=0.05), SGLD(step_size=0.01)], ids=["SGHMC", "SGLD"])
def test_a_run_resumes_bit_for_bit(model: Any, data: dict[str, Tensor], kernel: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("pyro_scale.inputs.CHUNK_STEPS", 8)
    compiled = compile_model(model, data, batch_size=BATCH, dtype=torch.float64)
    keep = tuple(compiled.drawn)
    plan = Plan(30, 0, 1, 2, keep)
    first = Run(compiled, kernel, plan, starts(compiled, 2), SEEDS)
    reporter = partial(Reporter, plan.num_steps, False, None)
    first.advance(reporter())
    middle = first.state()
    for _ in range(3):
        first.advance(reporter())
    second = Run(compiled, kernel, plan, starts(compiled, 2), (5, 6))
    second.restore(middle)
    for _ in range(3):
        second.advance(reporter())
    ahead = first.collected.draws[-len(second.collected.draws) :]
    assert len(ahead) > 20
    for again, draw in zip(second.collected.draws, ahead, strict=True):
        assert all(torch.equal(again.positions[name], leaf) for name, leaf in draw.positions.items())


def test_rows_that_are_not_visited_stay() -> None:
    model = compile_model(hierarchy, DATA, batch_size=BATCH)
    found = run(model, num_samples=2, warmup_steps=0, thinning=1, num_chains=3)
    moved = (found.draws["theta"][:, 0] - starts(model, 3)["theta"]).abs() > 1e-12
    assert moved.sum(1).tolist() == [BATCH] * 3
    assert len({tuple(row.tolist()) for row in moved}) == 3


# The law


@dataclass(frozen=True)
class Setting:
    """How `hierarchy` is sampled; the errors of sds are those of correlated draws."""

    batch_size: int | None
    kernel: Any
    num_samples: int
    thinning: int


@pytest.mark.parametrize(
    "setting",
    [
        Setting(20, SGHMC(step_size=0.1), 700, 40),
        Setting(None, SGHMC(step_size=0.2), 700, 10),
    ],
    ids=["SGHMC, 5 % of rows", "full batch"],
)
def test_sds_are_exact(setting: Setting) -> None:
    """400 rows, batches of 5 % of them: sd ratios of the shared site and of the rows within 0.95 and 1.05.

    The shared ratio has a standard error of about 0.015 and the mean over the rows' ratios one of 0.003: it fails by
    chance less than once in 1000 seeds. A table that moved by N/n times its gradient would have a ratio of 1.38.
    """
    generator = torch.Generator().manual_seed(0)
    y = 0.5 + math.hypot(NOISE, SPREAD) * torch.randn(400, generator=generator, dtype=torch.float64)
    posterior = ps.infer(
        hierarchy, {"y": y}, setting.kernel, batch_size=setting.batch_size, num_samples=setting.num_samples,
        thinning=setting.thinning, warmup_steps=4000, num_chains=8, seed=1, keep=["mu", "theta"], progress=False,
    )  # fmt: skip
    expected = exact(y)
    mu, theta = posterior.draws["mu"], posterior.draws["theta"].flatten(0, 1)
    shared = float(mu.std()) / expected.mu[1]
    rows = theta.std(0) / expected.theta[1]
    away = (theta.mean(0) - expected.theta[0]) / expected.theta[1]
    print(f"{setting}: shared {shared:.3f}, rows {rows.mean():.3f} ({rows.min():.3f}-{rows.max():.3f})")
    assert 0.95 < shared < 1.05
    assert 0.95 < rows.mean() < 1.05
    assert abs(float(mu.mean()) - expected.mu[0]) < 0.15 * expected.mu[1]
    assert away.square().mean().sqrt() < 0.1


# What is kept


def test_moments_are_those_of_the_draws_that_are_not_kept() -> None:
    model = compile_model(hierarchy, DATA, batch_size=BATCH)
    kept, left = run(model, keep=("mu", "theta", "twice")), run(model, keep=("mu",))
    assert kept.moments == {} and left.moments.keys() == {"theta", "twice"}
    assert left.draws.keys() == {"mu"} and torch.equal(kept.draws["mu"], left.draws["mu"])
    assert torch.equal(kept.draws["twice"], 2 * kept.draws["theta"])
    for name, (mean, sd) in left.moments.items():
        torch.testing.assert_close(mean, kept.draws[name].mean(1), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(sd, kept.draws[name].std(1), rtol=1e-10, atol=1e-10)


def test_moments_of_one_draw_have_no_sd() -> None:
    found = run(compile_model(hierarchy, DATA, batch_size=BATCH), keep=("mu",), num_samples=1)
    assert torch.isfinite(found.moments["theta"].mean).all() and torch.isnan(found.moments["theta"].sd).all()


def fitted(model: Any = hierarchy, data: Any = DATA, **options: Any) -> ps.Posterior:
    given = {"batch_size": BATCH, "num_samples": 10, "thinning": 2, "num_chains": 2, "seed": 0, "progress": False}
    return ps.infer(model, data, SGHMC(step_size=0.1), **{**given, **options})


def test_a_minibatched_posterior_keeps_moments_in_its_files(tmp_path: Path) -> None:
    posterior = fitted()
    assert posterior.draws.keys() == {"mu"} and posterior.moments["theta"].mean.shape == (2, N)
    assert posterior.idata["posterior_mean"]["theta"].dims == ("chain", "draw", "data")
    posterior.save(tmp_path / "draws.nc")
    for again in (ps.load(tmp_path / "draws.nc"), ps.load(tmp_path / "draws.nc", hierarchy, DATA)):
        assert again.moments.keys() == posterior.moments.keys()
        for name, (mean, sd) in posterior.moments.items():
            assert torch.equal(again.moments[name].mean, mean) and torch.equal(again.moments[name].sd, sd)


def effects(x: Tensor, y: Tensor | None = None) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        theta = pyro.sample("theta", dist.Normal(mu, SPREAD))
        pyro.sample("obs", dist.Normal(theta + x, NOISE), obs=y)


def test_new_rows_need_no_draws_of_the_old_ones() -> None:
    """A new row is normal given mu; 2000 draws, 5 standard errors: once in a million seeds it fails by chance."""
    posterior = fitted(effects, {"x": torch.zeros_like(Y), "y": Y}, num_samples=1000)
    x = torch.tensor([0.0, 30.0], dtype=torch.float64)
    new, mu = posterior.predict({"x": x}), posterior.draws["mu"]
    sd = math.sqrt(SPREAD**2 + NOISE**2 + float(mu.var()))
    assert ((new.mean["obs"] - x - mu.mean()).abs() < 5 * SPREAD / math.sqrt(2000)).all()
    assert ((new.sd["obs"] / sd - 1).abs() < 5 / math.sqrt(2 * 2000)).all()
    assert new.log_predictive_density == new.epistemic == {}
    with pytest.raises(MinibatchError, match="Site 'theta' has a value for each row"):
        posterior.log_likelihood({"x": x, "y": x})


def test_the_rows_of_the_fit_need_their_draws() -> None:
    posterior = fitted()
    with pytest.raises(MissingModelError, match=r"'theta' was not kept. Name it in keep: keep=\['mu', 'theta'\]"):
        posterior.predict()
    with pytest.raises(MissingModelError, match="'theta' was not kept"):
        posterior.log_likelihood()


def test_draws_of_rows_that_were_asked_for_predict_the_rows_of_the_fit() -> None:
    posterior = fitted(keep=["mu", "theta"])
    found = posterior.predict()
    torch.testing.assert_close(found.mean["obs"], posterior.draws["theta"].mean((0, 1)))
    assert posterior.log_likelihood()["obs"].shape == (2, 10, N)


# Bad input


class Joined(NamedTuple):
    position: Position
    everything: Tensor


@dataclass(frozen=True)
class Dense:
    """A kernel whose state holds a matrix over all coordinates."""

    step_size: float = 0.1
    temperature: float = 1.0

    def bind(self, target: Any, num_data: int) -> BoundKernel:
        def init(position: Position, noise: Any) -> Joined:
            size = sum(leaf.numel() for leaf in position.values())
            return Joined(position, torch.eye(size, dtype=torch.float64))

        def update(state: Joined, batch: Any, noise: Any, settings: Any) -> tuple[Joined, Info]:
            return state, Info(target(state.position, batch), torch.zeros((), dtype=torch.long))

        return BoundKernel(lambda position: {name: leaf.shape for name, leaf in position.items()}, init, update)


def test_a_kernel_that_cannot_hold_them_is_refused() -> None:
    message = r"Dense cannot hold site 'theta', which has a value for each row: 'everything' of its state joins all"
    with pytest.raises(MinibatchError, match=message):
        fitted_by(Dense(), BATCH)
    fitted_by(Dense(), None)


def fitted_by(kernel: Any, batch_size: int | None) -> ps.Posterior:
    return ps.infer(hierarchy, DATA, kernel, batch_size=batch_size, num_samples=2, num_chains=2, progress=False)


def test_a_site_that_is_not_there_cannot_be_kept() -> None:
    with pytest.raises(ArgumentError, match="keep names 'z'; the sites with draws are 'mu', 'theta', 'twice'"):
        fitted(keep=["z"])


def only_rows(y: Tensor) -> None:
    with pyro.plate("data", len(y)):
        theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
        pyro.sample("obs", dist.Normal(theta, NOISE), obs=y)


def test_a_model_of_nothing_but_rows_says_what_it_keeps() -> None:
    with pytest.raises(ArgumentError, match=r"Every site has a value for each row.*keep=\['theta'\]"):
        fitted(only_rows)
    assert fitted(only_rows, keep=["theta"]).draws["theta"].shape == (2, 10, N)


@pytest.mark.parametrize("keep", [["mu"], ["mu", "rate"]], ids=["moments", "draws"])
def test_rows_that_overflow_out_of_sight_end_the_run(keep: list[str]) -> None:
    """A step much too long sends a row to infinity, which no batch may visit again before it is kept."""

    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            rate = pyro.sample("rate", dist.LogNormal(mu, 1.0))
            pyro.sample("obs", dist.Poisson(rate), obs=y)

    counts = torch.ones(1000, dtype=torch.float64)
    counts[7] = 1e6
    with pytest.raises(NonFiniteError, match="not finite") as caught:
        ps.infer(
            model, {"y": counts}, SGHMC(step_size=0.5), batch_size=10, num_samples=20, warmup_steps=60, seed=0,
            keep=keep, num_chains=2, progress=False,
        )  # fmt: skip
    left = caught.value.posterior
    for value in left.draws.values() if left is not None else ():
        assert torch.isfinite(value).all()
