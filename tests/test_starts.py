"""Where chains start: side by side as one by one, at given values, at draws of the prior, at modes; and refusals."""

from __future__ import annotations

import logging
import re
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from model_cases import CASES, Case, partly_observed, random_walk
from small_models import DATA, NUM_ROWS, X, Y, bounded, correlated, decides_by_value, known_variance, regression
from torch import Tensor

import pyro_scale as ps
from pyro_scale import initial as initial_module
from pyro_scale.compile import CompiledModel, compile_model
from pyro_scale.errors import ArgumentError, StartError
from pyro_scale.hessian import AllRows
from pyro_scale.initial import initial_positions
from pyro_scale.types import Position

SEEDS = [11, 5, 8, 2**60]
BATCH = 6
KNOWN = {name: case for case in CASES for name in [case.name]}


def in_its_mode(case: Case) -> CompiledModel:
    return compile_model(
        case.model, case.data, constants=case.constants, batch_size=BATCH if case.minibatch else None,
        dtype=torch.float64,
    )  # fmt: skip


def chain(positions: Position, index: int) -> Position:
    return {name: leaf[index] for name, leaf in positions.items()}


def values_at(model: CompiledModel, positions: Position) -> dict[str, Tensor]:
    """Constrained values of all latent sites, one chain after another."""
    chains = [
        model.constrain(chain(positions, i), list(model.latent)) for i in range(len(next(iter(positions.values()))))
    ]
    return {name: torch.stack([values[name] for values in chains]) for name in model.latent}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


# Near 0


@pytest.mark.parametrize("case", [*CASES[::4], KNOWN["Multinomial"]], ids=lambda case: case.name)
def test_side_by_side_they_are_what_they_are_one_by_one(case: Case) -> None:
    model = in_its_mode(case)
    found = initial_positions(model, None, SEEDS)
    for i, seed in enumerate(SEEDS):
        assert_same(chain(found, i), model.initial_position(seed))


@pytest.mark.parametrize("model", [bounded, correlated], ids=["not a number", "no such matrix"])
@pytest.mark.parametrize("batch_size", [None, BATCH], ids=["full batch", "minibatches"])
def test_chains_that_cannot_start_are_drawn_again(model: Any, batch_size: int | None) -> None:
    """Half of the draws within 2 of 0 lie beyond 1, where there is no density."""
    compiled = compile_model(model, Y if model is bounded else X, batch_size=batch_size)
    seeds = list(range(30))
    found = initial_positions(compiled, None, seeds)
    for i, seed in enumerate(seeds):
        assert_same(chain(found, i), compiled.initial_position(seed))
    place = next(iter(found.values()))
    assert place.abs().max() < 1
    assert len(place.unique()) == 30


def test_a_model_that_cannot_be_vectorised_starts_chain_by_chain() -> None:
    compiled = compile_model(decides_by_value, Y)
    found = initial_positions(compiled, None, SEEDS)
    for i, seed in enumerate(SEEDS):
        assert_same(chain(found, i), compiled.initial_position(seed))


@pytest.mark.parametrize("start", [None, "prior", {"w": [0.1, 0.2]}])
def test_the_model_runs_a_few_times_for_any_number_of_chains(start: Any) -> None:
    calls = []

    def counted(x: Tensor, y: Tensor) -> None:
        calls.append(None)
        regression(x, y)

    compiled = compile_model(counted, DATA, batch_size=BATCH)
    calls.clear()
    positions = initial_positions(compiled, start, range(500))
    assert positions["w"].shape == (500, 2)
    assert len(calls) <= (500 // 64 + 3 if start == "prior" else 3)


@pytest.mark.parametrize("start", [None, "prior", "mode", {"sigma": 0.3}], ids=str)
def test_the_start_of_a_chain_depends_on_seed_and_chain_alone(start: Any) -> None:
    compiled = compile_model(regression, DATA, batch_size=BATCH)
    many, few = (
        (initial_positions(compiled, start, list(range(count))) for count in (70, 3))
        if start != "mode"
        else (initial_positions(compiled, start, list(range(count))) for count in (3, 2))
    )
    count = len(few["w"])
    assert_same({name: leaf[:count] for name, leaf in many.items()}, few)


# Given values


@pytest.mark.parametrize("case", CASES[::3], ids=lambda case: case.name)
def test_all_sites_at_given_values(case: Case) -> None:
    """Values that the model itself gives at random positions, for each chain its own, lead back to these."""
    model = in_its_mode(case)
    wanted = initial_positions(model, None, SEEDS)
    values = values_at(model, wanted)
    found = initial_positions(model, values, [seed + 1 for seed in SEEDS])
    for name, leaf in wanted.items():
        torch.testing.assert_close(found[name], leaf, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "convert", [lambda v: v, lambda v: v.numpy(), lambda v: v.tolist()], ids=["tensor", "array", "list"]
)
def test_one_value_for_all_chains_or_one_for_each(convert: Any) -> None:
    each = torch.tensor([[0.1, 0.2], [0.3, 0.4]], dtype=torch.float64)
    posterior = ps.infer(
        regression, DATA, ps.kernels.SGLD(step_size=1e-14), num_chains=2, num_samples=1, warmup_steps=0, seed=0,
        initial={"w": convert(each), "sigma": 0.25},
    )  # fmt: skip
    torch.testing.assert_close(posterior.draws["w"][:, 0], each, rtol=0, atol=1e-5)
    torch.testing.assert_close(posterior.draws["sigma"], torch.full((2, 1), 0.25).double(), rtol=0, atol=1e-5)
    assert posterior.settings["initial"] == ["w", "sigma"]


def test_sites_without_a_value_start_as_they_would() -> None:
    compiled = compile_model(regression, DATA)
    free, found = initial_positions(compiled, None, SEEDS), initial_positions(compiled, {"sigma": 2.0}, SEEDS)
    assert torch.equal(found["w"], free["w"])
    torch.testing.assert_close(found["sigma"], torch.full((4,), 2.0, dtype=torch.float64).log())
    assert_same(initial_positions(compiled, {}, SEEDS), free)


def test_values_of_sites_with_one_a_row() -> None:
    compiled = compile_model(partly_observed, KNOWN["partly observed"].data, batch_size=BATCH, dtype=torch.float64)
    name = next(iter(compiled.local))
    shape = compiled.latent[name]
    value = torch.linspace(0.5, 1.5, shape.numel(), dtype=torch.float64).reshape(shape)
    found = initial_positions(compiled, {name: value}, SEEDS)
    assert torch.equal(found[name], value.expand(4, *shape))


def test_a_support_that_follows_another_site() -> None:
    """A value of 3 needs a bound above it: chains are drawn again until it has one."""

    def model(y: Tensor) -> None:
        bound = pyro.sample("bound", dist.HalfNormal(5.0))
        level = pyro.sample("level", dist.Uniform(0.0, bound))
        with pyro.plate("data", len(y)):
            pyro.sample("obs", dist.Normal(level, 1.0), obs=y)

    compiled = compile_model(model, Y)
    found = initial_positions(compiled, {"level": 3.0}, list(range(20)))
    values = values_at(compiled, found)
    assert (values["bound"] > 3).all()
    torch.testing.assert_close(values["level"], torch.full((20,), 3.0, dtype=torch.float64))


# The prior


def nested(y: Tensor) -> None:
    """The second site is centred at the first, so that their prior is correlated; the third is bounded."""
    a = pyro.sample("a", dist.Normal(2.0, 1.0))
    pyro.sample("b", dist.Normal(a, 0.5))
    pyro.sample("p", dist.Beta(2.0, 3.0))
    with pyro.plate("data", len(y)):
        pyro.sample("obs", dist.Normal(a, 10.0), obs=y)


def test_starts_are_draws_of_the_prior() -> None:
    """Means, sds and one correlation of 2000 chains; beyond 4.5 standard errors at one seed in 20,000."""
    compiled = compile_model(nested, Y, batch_size=BATCH)
    values = values_at(compiled, initial_positions(compiled, "prior", range(2000)))
    exact = {"a": (2.0, 1.0), "b": (2.0, 1.25**0.5), "p": (0.4, 0.2)}
    for name, (mean, sd) in exact.items():
        errors = [(values[name].mean() - mean) / sd * 2000**0.5, (values[name].std() / sd - 1) * 4000**0.5]
        print(name, [f"{float(error):.2f}" for error in errors])
        assert max(map(abs, errors)) < 4.5
    correlation = torch.corrcoef(torch.stack([values["a"], values["b"]]))[0, 1]
    z = (correlation.atanh() - torch.tensor(0.8**0.5).atanh()) * 1997**0.5
    print(f"correlation {float(correlation):.3f}, {float(z):.2f} standard errors")
    assert abs(z) < 4.5
    assert len(values["a"].unique()) == 2000


@pytest.mark.parametrize(
    "name", ["discrete", "eight schools", "mixture prior", "LKJCholesky, multivariate normal", "module"]
)
def test_any_model_with_a_proper_prior_starts_there(name: str) -> None:
    """In the support, at a finite density, and not where starts near 0 are."""
    model = in_its_mode(KNOWN[name])
    found = initial_positions(model, "prior", SEEDS)
    for i in range(len(SEEDS)):
        assert torch.isfinite(model.log_prior(chain(found, i)))
    assert {name: leaf.shape[1:] for name, leaf in found.items()} == model.latent


def test_draws_of_the_prior_without_a_density_are_drawn_again() -> None:
    compiled = compile_model(bounded, Y)
    found = initial_positions(compiled, "prior", range(100))["spread"]
    assert found.abs().max() < 1
    assert len(found.unique()) == 100


# Modes


def test_every_chain_climbs_to_the_mode() -> None:
    """The mode of a conjugate posterior is its mean."""
    posterior = ps.infer(
        known_variance, Y, ps.kernels.SGLD(step_size=1e-14), num_chains=3, num_samples=1, warmup_steps=0, seed=0,
        initial="mode",
    )  # fmt: skip
    expected = (Y.sum() / (NUM_ROWS + 1)).expand(3, 1)
    torch.testing.assert_close(posterior.draws["mu"], expected, rtol=0, atol=1e-5)
    assert posterior.settings["initial"] == "mode"


def test_each_to_a_mode_of_its_own() -> None:
    """Of two, at equal height: those chains that start on its side of 0."""

    def model(y: Tensor) -> None:
        a = pyro.sample("a", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(y)):
            pyro.sample("obs", dist.Normal(a**2, 1.0), obs=y)

    compiled = compile_model(model, 4 + 0 * Y)
    near, found = (initial_positions(compiled, start, range(8))["a"] for start in (None, "mode"))
    assert torch.equal(near.sign(), found.sign())
    assert (found > 0).any() and (found < 0).any()
    torch.testing.assert_close(found.abs(), torch.full((8,), 2.0).double(), rtol=0, atol=1e-3)


def test_a_climb_without_end_is_refused() -> None:
    case = KNOWN["groups"]
    with pytest.raises(StartError, match=r"initial is 'mode', and 1 of 1 chains reached none.*initial='prior'"):
        initial_positions(in_its_mode(case), "mode", SEEDS[:1])


def test_beyond_newtons_reach_a_mode_that_is_none_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(initial_module, "DENSE_LIMIT", 0)
    monkeypatch.setattr("pyro_scale.mode.DENSE_LIMIT", 0)
    monkeypatch.setattr("pyro_scale.mode.MAX_ADAM_STEPS", 10)
    caplog.set_level(logging.WARNING, logger="pyro_scale")
    found = initial_positions(compile_model(regression, DATA), "mode", SEEDS[:2])
    assert torch.isfinite(found["w"]).all()
    assert "2 of 2 chains reached none" in caplog.text and "where their climb ended" in caplog.text


# What is refused

SITES = "Leave it out: the sites that chains move in are 'w', 'sigma'."
REFUSED: list[tuple[Any, str]] = [
    ("modes", "initial is 'modes'; it must be 'prior', 'mode', a dict of values by site, or None"),
    (3, "initial is 3; it must be 'prior', 'mode', a dict"),
    ([0.1], "initial is [0.1]; it must be"),
    (torch.zeros(2), "initial is tensor([0., 0.]); it must be"),
    ({"nope": 1.0}, f"initial names 'nope', which is no site of the model. {SITES}"),
    ({3: 1.0}, f"initial names 3, which is no site of the model. {SITES}"),
    ({"obs": 1.0}, f"initial names 'obs', which is observed. {SITES}"),
    ({"precision": 1.0}, "initial names 'precision', which is deterministic: it follows from the others. Leave"),
    ({"w": torch.zeros(3)}, "initial['w'] has shape (3,); it must have the site's, (2,), or (4, 2) for a start"),
    ({"w": torch.zeros(3, 2)}, "initial['w'] has shape (3, 2); it must have the site's, (2,), or (4, 2)"),
    ({"w": 0.5}, "initial['w'] has shape (); it must have the site's, (2,), or (4, 2)"),
    ({"w": "a"}, "initial['w'] is a str; it must be a number, tensor or array."),
    ({"w": None}, "initial['w'] is a NoneType; it must be a number, tensor or array."),
    ({"sigma": -1.0}, "initial['sigma'] is outside the support GreaterThanEq(lower_bound=0.0) of its HalfNormal"),
    ({"sigma": [1.0, 1.0, -2.0, 1.0]}, "in chain 2: -2. Give a value within it."),
    ({"sigma": 0.0}, "or at its edge, in chain 0: 0. Give a value within it."),
    ({"w": [float("nan"), 1.0]}, "initial['w'] is outside the support"),
    ({"w": [1.0, float("inf")]}, "initial['w'] is outside the support"),
]  # fmt: skip


@pytest.mark.parametrize(("start", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_refused(start: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=re.escape(message)):
        ps.infer(regression, DATA, initial=start, num_chains=4, num_samples=1, seed=0)


def test_a_discrete_site_is_refused() -> None:
    model = in_its_mode(KNOWN["discrete"])
    name = KNOWN["discrete"].discrete[0]
    with pytest.raises(ArgumentError, match=f"initial names '{name}', which is discrete and summed out"):
        initial_positions(model, {name: 1}, SEEDS)


@pytest.mark.parametrize("size", [300, 301])
def test_a_mode_of_many_coordinates_takes_no_product_of_its_hessian(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network of a million weights would need a million; matrices are made up to 300."""
    made = []

    def rows(*arguments: Any) -> AllRows:
        made.append(arguments)
        return AllRows(*arguments)

    monkeypatch.setattr("pyro_scale.mode.AllRows", rows)

    def model(y: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([size]).to_event(1))
        with pyro.plate("data", len(y)):
            pyro.sample("obs", dist.Normal(w, 1.0).to_event(1), obs=y)

    y = torch.linspace(-2, 2, size).double().expand(20, size)
    found = initial_positions(compile_model(model, {"y": y}), "mode", SEEDS[:1])["w"]
    assert torch.allclose(found, y[:1] * 20 / 21, atol=1e-3)
    assert len(made) == (size == 300)  # it takes second derivatives


def test_an_improper_prior_is_refused() -> None:
    model = in_its_mode(KNOWN["ImproperUniform"])
    message = (
        r"initial is 'prior', and that of site 'mu' is ImproperUniform, which cannot be drawn from.*initial={'mu': "
    )
    with pytest.raises(ArgumentError, match=message):
        initial_positions(model, "prior", SEEDS)


def test_values_without_a_density_are_refused() -> None:
    """In the support of the prior, but not where the likelihood is defined."""
    with pytest.raises(
        StartError, match=r"for chain 1 at the values of initial: site 'obs' has log density nan.*elsewhere"
    ):
        initial_positions(compile_model(bounded, Y), {"spread": [0.5, 2.0]}, SEEDS[:2])


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ("prior", "for chain 0 in 100 draws from the prior: site 'obs' has log density -inf. Check that the prior"),
        (None, "in 100 attempts within 2 of 0 in unconstrained space: site 'obs' has log density -inf. Check"),
        ("mode", "in 100 attempts within 2 of 0"),
    ],
)
def test_a_prior_that_forbids_the_data_is_refused(start: Any, message: str) -> None:
    def model(y: Tensor) -> None:
        bound = pyro.sample("bound", dist.Uniform(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("obs", dist.Uniform(0.0, bound), obs=y)

    with pytest.raises(StartError, match=message):
        initial_positions(compile_model(model, Y.abs() + 2), start, SEEDS)


def test_the_settings_tell_and_are_kept_in_files(tmp_path: Any) -> None:
    run = {"num_chains": 2, "num_samples": 2, "warmup_steps": 0, "seed": 0}
    for start, told in ((None, None), ("prior", "prior"), ({"w": X[0]}, ["w"])):
        posterior = ps.infer(regression, DATA, initial=start, **run)
        posterior.save(tmp_path / "run.nc")
        assert posterior.settings["initial"] == ps.load(tmp_path / "run.nc").settings["initial"] == told


def test_a_random_walk_may_start_at_its_prior() -> None:
    compiled = compile_model(random_walk, KNOWN["random walk"].data, dtype=torch.float64)
    assert torch.isfinite(
        torch.stack([leaf.sum() for leaf in initial_positions(compiled, "prior", SEEDS).values()])
    ).all()
