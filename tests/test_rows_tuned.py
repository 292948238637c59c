"""Tuned minibatches of models with a value for each row, against exact posteriors."""

from __future__ import annotations

import logging
import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from small_models import numbers
from torch import Tensor
from torch.func import grad

import pyro_scale as ps
from pyro_scale import tree
from pyro_scale.compile import CompiledModel, compile_model
from pyro_scale.conditional import Conditional, Layout
from pyro_scale.gradient import ControlVariate, anchor_at
from pyro_scale.gradient_noise import noise_variance
from pyro_scale.hessian import AllRows
from pyro_scale.law import law_of
from pyro_scale.mixing import of_moments
from pyro_scale.mode import Mode, newton
from pyro_scale.moments import Moments
from pyro_scale.row_coordinates import RowCoordinates
from pyro_scale.rowwise import Rowwise
from pyro_scale.types import Position

N, SIZE, COLUMNS = 120, 30, 2
Y = 0.7 + 0.8 * numbers(N, 1, seed=1) + numbers(N, COLUMNS, seed=2)


def known(y: Tensor) -> None:
    """Conjugate: two values a row, of which one is a vector's, and two shared ones; all are normal."""
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        a = pyro.sample("a", dist.Normal(mu, 0.8))
        b = pyro.sample("b", dist.Normal(slope - mu, 0.5).expand([len(y), 1]).to_event(1))
        pyro.sample("obs", dist.Normal(torch.stack([a, a + b[:, 0]], 1), 1.0).to_event(1), obs=y)


def effects(y: Tensor) -> None:
    """Of which mean and sd are unknown."""
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    tau = pyro.sample("tau", dist.HalfNormal(1.0))
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(mu, tau))
        pyro.sample("obs", dist.Normal(z[:, None].expand(y.shape), 1.0).to_event(1), obs=y)


def shared_of(compiled: CompiledModel) -> list[str]:
    return [name for name in compiled.latent if name not in compiled.local]


def expanded(model: Any, temperature: float = 1.0) -> tuple[CompiledModel, Conditional, RowCoordinates, Mode]:
    compiled = compile_model(model, {"y": Y}, batch_size=SIZE)
    for seed in range(4):
        start = compiled.initial_position(seed)
        values = Layout(compiled.latent, compiled.local).matrix(start)
        conditional = Conditional(compiled, temperature, values)
        mode = newton(conditional, [compiled.batch()], {name: start[name] for name in shared_of(compiled)})
        if mode.converged:
            break
    assert mode.converged
    return compiled, conditional, RowCoordinates(conditional, mode), mode


def joint_hessian(compiled: CompiledModel, position: Position) -> Tensor:
    return AllRows(compiled, [compiled.batch()], position).negative_hessian(tree.ravel(position))


# Pieces


def test_a_matrix_of_rows_and_back() -> None:
    shapes = {"z": torch.Size([2, 5, 3]), "mu": torch.Size([4]), "a": torch.Size([5])}
    layout = Layout(shapes, {"z": 1, "a": 0})
    leaves = {"z": numbers(7, 2, 5, 3, seed=0), "a": numbers(7, 5, seed=1)}
    matrix = layout.matrix(leaves)
    assert matrix.shape == (7, 5, 7)
    assert torch.equal(matrix[3, 4], torch.cat([leaves["z"][3, :, 4].reshape(-1), leaves["a"][3, 4:5]]))
    again = layout.leaves(matrix)
    assert all(torch.equal(again[name], leaf) for name, leaf in leaves.items())


@pytest.mark.parametrize("temperature", [1.0, 0.25])
def test_of_a_normal_posterior_the_marginal_is_exact(temperature: float) -> None:
    """Its covariance is a block of the inverse of the joint Hessian; at a temperature it is in proportion."""
    compiled, _, coordinates, mode = expanded(known, temperature)
    position = coordinates.position(tree.map(torch.zeros_like, compiled.initial_position(0)))
    gradient = grad(compiled.log_posterior)(position, compiled.batch())
    assert all(float(leaf.abs().max()) < 1e-6 for leaf in gradient.values())
    covariance = torch.linalg.inv(joint_hessian(compiled, position))
    torch.testing.assert_close(torch.linalg.inv(mode.negative_hessian), covariance[:2, :2])


@pytest.mark.parametrize("temperature", [1.0, 0.25])
def test_a_normal_posterior_is_white(temperature: float) -> None:
    """In all directions at once, at any temperature."""
    compiled, _, coordinates, _ = expanded(known, temperature)
    zero = tree.map(torch.zeros_like, compiled.initial_position(0))
    hessian = AllRows(coordinates, [compiled.batch()], zero).negative_hessian(tree.ravel(zero)) / N
    torch.testing.assert_close(hessian, torch.eye(2 + 2 * N).double(), rtol=1e-8, atol=1e-8)


def counts(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(mu, 0.5))
        pyro.sample("obs", dist.Poisson(z.exp()), obs=y)


@pytest.mark.parametrize("model", [effects, counts])
def test_modes_of_rows_in_float32_are_those_in_float64(model: Any) -> None:
    """Of values far from 0, whose slopes have rounding errors far above those of float64."""
    y = 50 + Y if model is effects else (20 + 4 * Y[:, 0]).round().clamp(min=0)
    modes = []
    for dtype in (torch.float32, torch.float64):
        compiled = compile_model(model, {"y": y}, batch_size=SIZE, dtype=dtype)
        shared = torch.tensor([50.0, 0.0] if model is effects else [3.0], dtype=dtype)
        start = Layout(compiled.latent, compiled.local).matrix(compiled.initial_position(0))
        modes.append(Conditional(compiled, 1.0, start).mode(shared))
    assert modes[0].dtype == torch.float32
    torch.testing.assert_close(modes[0].double(), modes[1], rtol=0, atol=2e-3)


def test_there_and_back() -> None:
    for model in (known, effects):
        compiled, _, coordinates, _ = expanded(model)
        positions = tree.map(lambda leaf: 0.3 * numbers(3, *leaf.shape, seed=4), compiled.initial_position(0))
        again = coordinates.position(coordinates.coordinates(positions))
        assert list(again) == list(positions)
        for name, leaf in positions.items():
            torch.testing.assert_close(again[name], leaf, rtol=1e-9, atol=1e-9)


def test_the_density_is_that_of_the_coordinates() -> None:
    """Slopes of log p + T log |J|, with J by differentiation of the map itself, against those of the target."""
    temperature = 0.9
    compiled, _, coordinates, _ = expanded(effects, temperature)
    like = compiled.initial_position(0)
    z = tree.map(lambda leaf: 0.05 * numbers(*leaf.shape, seed=5) if leaf.ndim else leaf * 0 + 0.03, like)
    shapes = tree.shapes(like)

    def density(vector: Tensor) -> Tensor:
        def there(at: Tensor) -> Tensor:
            return tree.ravel(coordinates.position(tree.unravel(at, shapes)))

        jacobian = torch.func.jacrev(there)(vector)
        position = tree.unravel(there(vector), shapes)
        return compiled(position, compiled.batch()) + temperature * torch.linalg.slogdet(jacobian)[1]

    found = tree.ravel(grad(coordinates)(z, compiled.batch()))
    vector = tree.ravel(z)
    for index in (0, 1, 5):
        step = torch.zeros_like(vector)
        step[index] = 1e-5
        slope = (density(vector + step) - density(vector - step)) / 2e-5
        assert float(found[index]) == pytest.approx(float(slope), rel=1e-5, abs=1e-4)


def test_minibatches_move_rows_by_their_own_gradient_and_shared_sites_by_an_unbiased_one() -> None:
    compiled, _, coordinates, _ = expanded(effects)
    z = tree.map(
        lambda leaf: 0.05 * numbers(*leaf.shape, seed=5) if leaf.ndim else leaf * 0 + 0.03, compiled.initial_position(0)
    )
    whole = grad(coordinates)(z, compiled.batch())
    total = tree.map(torch.zeros_like, {name: z[name] for name in shared_of(compiled)})
    for rows in torch.arange(N).split(SIZE):
        part = grad(coordinates)(compiled.at_rows(z, rows), compiled.batch(rows))
        torch.testing.assert_close(part["z"], whole["z"][rows], rtol=1e-9, atol=1e-9)
        total = {name: leaf + part[name] * SIZE / N for name, leaf in total.items()}
    for name, leaf in total.items():
        torch.testing.assert_close(leaf, whole[name])


def noise(model: Any, anchored: bool) -> dict[str, float]:
    """V of the shared sites at draws, relative to 1 / N."""
    compiled, _, coordinates, _ = expanded(model)
    like = compiled.initial_position(0)
    draws = tree.map(lambda leaf: numbers(8, *leaf.shape, seed=6) / math.sqrt(N), like)
    target: Any = ControlVariate(coordinates) if anchored else coordinates
    anchor: Any = ()
    if anchored:
        one = anchor_at(coordinates, [compiled.batch()], tree.map(torch.zeros_like, like), compiled.local)
        assert list(one.position) == list(one.gradient) == shared_of(compiled)
        anchor = torch.utils._pytree.tree_map(lambda leaf: leaf.expand(8, *leaf.shape), one)
    generator = torch.Generator().manual_seed(0)
    found = noise_variance(target, compiled.gathered, N, SIZE, anchor, draws, generator, local=compiled.local)
    assert all(found[name].shape == () and float(found[name]) == 0 for name in compiled.local)
    return {name: float(found[name]) * N for name in shared_of(compiled)}


def test_control_variates_leave_no_noise_of_a_normal_posterior() -> None:
    """Without them a row's gradient varies as much as its curvature, 1 a datum: V is about 1 / n."""
    with_all, without = noise(known, True), noise(known, False)
    assert max(with_all.values()) < 1e-12
    assert 0.3 * N / SIZE < min(without.values()) < max(without.values()) < 3 * N / SIZE


def test_little_noise_is_left_where_the_sd_of_rows_is_unknown() -> None:
    with_all, without = noise(effects, True), noise(effects, False)
    assert max(with_all.values()) < 0.1 * min(without.values())


# Runs


class Exact:
    """Posterior of `effects` by quadrature over tau, given which all is normal."""

    def __init__(self, y: Tensor) -> None:
        rows, columns = y.shape
        tau = torch.linspace(0.01, 3.0, 3000).double()
        variance = tau**2 + 1 / columns  # of the mean of a row around mu
        mean = y.mean(1)
        precision = 1 / 4 + rows / variance
        center = mean.sum() / variance / precision
        squares = (mean**2).sum() / variance - precision * center**2
        log_density = -(rows * variance.log() + squares + precision.log() + tau**2) / 2
        weights = torch.softmax(log_density, 0)
        self.tau = self.moments(weights, tau, torch.zeros_like(tau))
        self.mu = self.moments(weights, center, 1 / precision)
        share = tau**2 / variance  # of a row's mean in its value
        at = share[:, None] * mean + (1 - share[:, None]) * center[:, None]
        spread = share / columns + (1 - share) ** 2 / precision
        self.z = self.moments(weights[:, None], at, spread[:, None])

    @staticmethod
    def moments(weights: Tensor, means: Tensor, variances: Tensor) -> tuple[Tensor, Tensor]:
        mean = (weights * means).sum(0)
        return mean, ((weights * (variances + means**2)).sum(0) - mean**2).sqrt()


@pytest.fixture(scope="module")
def posterior() -> ps.Posterior:
    options: dict[str, Any] = {"num_samples": 500, "thinning": 4, "seed": 0, "progress": False, "jit_compile": False}
    return ps.infer(effects, {"y": Y}, batch_size=SIZE, **options)


def test_tuned_runs_are_exact(posterior: ps.Posterior) -> None:
    """Some 700 independent draws of what is shared, standard errors 0.04 and 0.03; sds may be off by 0.05 besides."""
    exact = Exact(Y)
    for name, (mean, sd) in {"mu": exact.mu, "tau": exact.tau}.items():
        draws = posterior.draws[name]
        print(name, float((draws.mean() - mean) / sd), float(draws.std() / sd))
        assert abs(float((draws.mean() - mean) / sd)) < 0.15
        assert abs(float(draws.std() / sd) - 1) < 0.13
    found = posterior.moments["z"]
    mean = found.mean.mean(0)
    sd = (found.sd.square().mean(0) + found.mean.var(0, correction=0)).sqrt()
    away, ratio = (mean - exact.z[0]) / exact.z[1], sd / exact.z[1]
    print("z", float(away.square().mean().sqrt()), float(ratio.mean()), float(ratio.min()), float(ratio.max()))
    assert float(away.square().mean().sqrt()) < 0.07
    assert abs(float(ratio.mean()) - 1) < 0.03
    assert posterior.health["R-hat"].value < 1.01
    assert posterior.health["R-hat, rows"].value < 1.01


def test_draws_are_to_be_apart_as_rows_need(posterior: ps.Posterior) -> None:
    """A row moves in a quarter of the steps; at 500 draws of a chain it is to have 200 independent values."""
    told = posterior.settings["tuning"]
    assert told["control_variates"] and told["modes"] == 1
    least = 200 / 500 * N / SIZE * law_of(ps.kernels.SGHMC(), posterior.step_size).autocorrelation_time
    assert told["autocorrelation_time"] >= least


def test_few_draws_tell_nothing_of_chains_that_disagree(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few were drawn, of many that were asked for."""
    monkeypatch.setattr("pyro_scale.mixing.LEAST_DRAWS", 500)
    options: dict[str, Any] = {"num_samples": 1000, "warmup_steps": 0, "thinning": 1, "seed": 0, "progress": False}
    options |= {"jit_compile": False, "callback": lambda now: now.num_draws >= 2}
    found = ps.infer(known, Y, ps.kernels.SGHMC(step_size=0.01), batch_size=SIZE, **options)
    assert 2 <= found.draws["mu"].shape[1] < 500
    assert "R-hat, rows" not in [check.name for check in found.health.checks]


# What is not tuned


def test_where_rows_do_not_follow_a_straight_line_the_run_says_so(caplog: pytest.LogCaptureFixture) -> None:
    """One observation a row does not tell its sd from that of the rows, which may be near 0."""
    caplog.set_level(logging.INFO, "pyro_scale")

    def model(y: Tensor) -> None:
        tau = pyro.sample("tau", dist.HalfNormal(1.0))
        sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, tau))
            pyro.sample("obs", dist.Normal(z, sigma), obs=y)

    found = ps.infer(model, Y[:, 0].clone(), batch_size=SIZE, num_samples=4, warmup_steps=0, seed=0, progress=False)
    assert found.settings["tuning"] == {} and found.step_size == ps.kernels.SGHMC.default_step_size
    assert "site 'z' has a value for each row of the minibatches, and follows what rows share too far" in caplog.text
    assert "batch_size=None is tuned" in caplog.text
    assert found.timing["tune"] > 0


def test_where_the_pilot_diverges_the_run_says_so(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "pyro_scale")
    monkeypatch.setattr(Rowwise, "explored", lambda *given: None)
    found = ps.infer(known, Y, batch_size=SIZE, num_samples=4, warmup_steps=100, seed=0, progress=False)
    assert found.settings["tuning"] == {} and found.step_size == ps.kernels.SGHMC.default_step_size
    assert "chains of the pilot do not stay finite at a step size of" in caplog.text


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ("alone", "there is nothing that rows share"),
        ("few steps", "has no mode at the starts"),
        ("flat", "leaves a posterior of what rows share, integrated over it, that has no mode"),
        ("many", "2 coordinates that all rows share, and 1 a row, are too many"),
    ],
)
def test_others_that_are_not_tuned(
    model: str, why: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "pyro_scale")
    if model == "few steps":
        monkeypatch.setattr("pyro_scale.conditional.MOST_STEPS", 1)
    if model == "many":
        monkeypatch.setattr("pyro_scale.rowwise.MOST_NUMBERS", 3 * N - 1)

    def run(y: Tensor) -> None:
        a: Any = 0.0
        if model != "alone":
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
        if model in ("flat", "many"):
            a = a - pyro.sample("b", dist.ImproperUniform(dist.constraints.real, (), ()))
        if model == "flat":
            a = a - pyro.sample("c", dist.ImproperUniform(dist.constraints.real, (), ()))
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(a, 1.0))
            pyro.sample("obs", dist.Normal(z, 1.0), obs=y)

    options: dict[str, Any] = {"num_samples": 2, "warmup_steps": 0, "seed": 0, "progress": False, "keep": ["z"]}
    found = ps.infer(run, Y[:, 0].clone(), batch_size=SIZE, **options)
    assert found.settings["tuning"] == {}
    assert why in caplog.text


def test_moments_of_chains_that_disagree_fail() -> None:
    """Means of two chains 1 apart, within which sds are 1: the variance of means is 1/2."""
    mean = torch.stack([torch.zeros(10), torch.ones(10)])
    apart = of_moments({"z": Moments(mean, torch.ones(2, 10)), "w": Moments(0 * mean, torch.ones(2, 10))}, 100)
    assert apart[0].value == pytest.approx(math.sqrt(0.99 + 0.5)) and not apart[0].passed
    assert apart[0].where == "z" and apart[0].name == "R-hat, rows"
    assert of_moments({"z": Moments(0 * mean, torch.ones(2, 10))}, 100)[0].passed
    assert of_moments({"z": Moments(mean[:1], torch.ones(1, 10))}, 100) == []
    assert of_moments({}, 100) == []
