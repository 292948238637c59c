"""Verdicts: runs that are right pass, each kind of wrong one fails the checks that are meant for it."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from small_models import numbers
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import pyro_scale as ps
from pyro_scale import outcome
from pyro_scale.health import Check, Health, of_ending, of_sds
from pyro_scale.kernels import PSGLD, SGHMC, SGLD
from pyro_scale.mixing import of_draws, of_still, of_superchains, scalars
from pyro_scale.posterior import Posterior
from pyro_scale.temperature import Measured

NUM_ROWS = 200
X = numbers(NUM_ROWS, 3, seed=1)
Y = X @ torch.tensor([1.0, -1.0, 0.5]).double() + numbers(NUM_ROWS, seed=2)
DATA = {"x": X, "y": Y}
GOOD = SGHMC(step_size=0.2)


def linear(x: Tensor, y: Tensor | None = None) -> None:
    w = pyro.sample("w", dist.Normal(torch.zeros(3), 10.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.Normal(x @ w, 1.0), obs=y)


def two_modes(y: Tensor) -> None:
    x = pyro.sample("x", dist.Normal(0.0, 3.0))
    with pyro.plate("data", len(y)):
        pyro.sample("obs", dist.Normal(x**2, 1.0), obs=y)


def run(method: Any = GOOD, **options: Any) -> Posterior:
    chosen = {"num_samples": 400, "warmup_steps": 300, "thinning": 12, "seed": 0, "jit_compile": False}
    return ps.infer(linear, DATA, method, **{**chosen, "progress": False, **options})


def failed(posterior: Posterior) -> set[str]:
    print(posterior.health)
    return {check.name for check in posterior.health.failed}


@pytest.mark.parametrize("seed", range(3))
def test_a_right_run_passes(seed: int, caplog: pytest.LogCaptureFixture) -> None:
    posterior = run(seed=seed)
    assert failed(posterior) == set()
    assert posterior.health
    assert not caplog.records
    assert str(posterior.health).startswith("Health: 7 checks passed")


def test_a_tuned_run_passes_and_tells_the_bias_of_its_steps() -> None:
    posterior = run("sghmc", batch_size=20, warmup_steps=None, thinning=None, num_samples=300)
    assert failed(posterior) == set()
    assert 0.001 < posterior.health["sd error, predicted of step size"].value < 0.05
    assert posterior.health["sd error, predicted of step size"].limit == 0.05


def test_minibatches_of_one_row_are_too_hot(caplog: pytest.LogCaptureFixture) -> None:
    posterior = run(batch_size=1)
    sd = posterior.draws["w"].flatten(0, 1).std(0) * NUM_ROWS**0.5
    assert float(sd.min()) > 1.3
    wrong = failed(posterior)
    assert {"sd error, by momenta", "sd error, by gradients", "sd error, predicted of minibatches"} <= wrong
    assert "sd error, by momenta of w is" in caplog.text  # without any gradient
    assert "Minibatch noise heats the chains: raise batch_size" in caplog.text
    seen = 1 + posterior.health["sd error, by gradients"].value
    assert seen == pytest.approx(float(sd.mean()), rel=0.15)


def test_steps_ten_times_too_long_are_seen() -> None:
    """With all rows, where nothing else is wrong: SGLD at step 1 has sds 1.41 times too wide."""
    wrong = failed(run(SGLD(step_size=1.0)))
    assert wrong == {"sd error, by gradients", "sd error, predicted of step size"}
    assert failed(run(SGLD(step_size=0.1))) == set()


def test_chains_in_two_modes_are_seen(caplog: pytest.LogCaptureFixture) -> None:
    data = {"y": torch.full((20,), 4.0).double()}
    options: dict[str, Any] = {"num_samples": 300, "progress": False, "jit_compile": False}
    posterior = ps.infer(two_modes, data, num_chains=4, seed=1, **options)
    assert posterior.settings["tuning"]["modes"] == 2
    assert "R-hat" in failed(posterior)
    assert "Warm-up found 2 modes, and chains have found different modes." in caplog.text


def test_too_few_draws_are_seen() -> None:
    assert {"R-hat", "ESS, mean"} <= failed(run(num_samples=20, warmup_steps=0, thinning=1))


def test_what_cannot_be_checked_is_said() -> None:
    one = run(num_samples=1, num_chains=2)
    assert {check.name for check in one.verdict.checks} == {"clamped noise"}
    annealed = run(SGHMC(step_size=0.1, temperature=ps.schedules.polynomial(1.0)))
    assert "Temperatures are not checked: the kernel's is a schedule, or 0." in str(annealed.health)
    loader = DataLoader(TensorDataset(X, Y), batch_size=50, shuffle=True)
    streamed = ps.infer(linear, loader, GOOD, num_samples=4, warmup_steps=2, thinning=1, seed=0, progress=False)
    assert "Temperatures are not checked: the rows come from a DataLoader." in str(streamed.health)
    unpredicted = run(PSGLD(step_size=0.1), num_samples=100)
    assert "sd error, predicted of step size" not in {check.name for check in unpredicted.health.checks}


def test_verdicts_of_files(tmp_path: Path) -> None:
    posterior = run(batch_size=1, num_samples=100)
    posterior.save(tmp_path / "run.nc")
    alone = ps.load(tmp_path / "run.nc")
    assert alone.verdict.checks == posterior.verdict.checks
    assert "Temperatures are not checked: the posterior was loaded without its model." in str(alone.health)
    together = ps.load(tmp_path / "run.nc", linear, DATA)
    name = "sd error, by gradients"
    assert together.health[name].value == pytest.approx(posterior.health[name].value, rel=1e-6)


def test_nuts_is_judged_too() -> None:
    reference = ps.diagnostics.nuts(
        linear, DATA, num_samples=200, num_chains=2, seed=0, progress=False, jit_compile=False
    )
    assert failed(reference) == set()
    assert "divergences" in {check.name for check in reference.health.checks}


def test_a_run_that_ended_early_says_so() -> None:
    posterior = run(callback=lambda progress: progress.num_draws > 50, num_samples=200_000)
    assert "early end" in failed(posterior)


def test_superchains_start_together() -> None:
    """At the first step of a chain without noise: all of a superchain are where its first one is."""
    still = run(SGHMC(step_size=0.1, temperature=0.0), num_samples=1, warmup_steps=0, num_chains=6, num_superchains=3)
    w = still.draws["w"][:, 0].reshape(3, 2, 3)
    assert torch.equal(w[:, 0], w[:, 1])
    assert len(w[:, 0, 0].unique()) == 3
    options: dict[str, Any] = {"batch_size": 20, "num_samples": 1, "num_chains": 6, "num_superchains": 3}
    tuned = run("sghmc", warmup_steps=200, thinning=1, **options)
    assert tuned.settings["num_superchains"] == 3


def test_superchains_tell_of_short_chains_whether_they_have_forgotten_their_starts() -> None:
    options: dict[str, Any] = {"num_samples": 1, "num_chains": 64, "num_superchains": 8}
    assert "nested R-hat" in failed(run(warmup_steps=2, **options))
    assert failed(run(warmup_steps=300, **options)) == set()


@pytest.mark.parametrize(("chains", "groups", "samples", "number"), [(64, 8, 1, 1), (4, 2, 1, 20), (16, 8, 5, 20)])
def test_false_alarms_of_nested_r_hat_are_as_rare_as_is_said(
    chains: int, groups: int, samples: int, number: int
) -> None:
    """Of 1000 posteriors one fails on average: more than 6 with probability 1e-4."""
    draws = numbers(1000, chains, samples, number, seed=5)
    alarms = sum(not all(check.passed for check in of_superchains({"x": each}, groups)) for each in draws)
    print(alarms)
    assert alarms <= 6


def test_long_chains_that_remember_their_starts_are_seen() -> None:
    draws = 0.1 * numbers(8, 200, seed=6) + numbers(4, seed=7).repeat_interleave(2).unsqueeze(1)
    assert [check.passed for check in of_superchains({"x": draws}, 4)] == [False]


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (1, "num_superchains is 1; it must be a whole number from 2 to 3, half of the 6 chains."),
        (6, "num_superchains is 6; it must be a whole number from 2 to 3, half of the 6 chains."),
        ("2", "num_superchains is '2'; it must be a whole number from 2 to 3, half of the 6 chains."),
    ],
)
def test_superchains_that_cannot_be(number: Any, message: str) -> None:
    with pytest.raises(ps.errors.ArgumentError, match=re.escape(message)):
        run(num_chains=6, num_superchains=number)
    with pytest.raises(ps.errors.ArgumentError, match="num_superchains is 3; it must divide the number of chains, 8"):
        run(num_chains=8, num_superchains=3)
    with pytest.raises(ps.errors.ArgumentError, match="two superchains of two take 4"):
        run(num_chains=3, num_superchains=2)


def test_only_some_of_many_values_are_looked_at() -> None:
    draws = {"a": torch.zeros(2, 4), "w": torch.arange(8000.0).reshape(2, 4, 10, 100)}
    names, values = scalars(draws)
    assert values.shape == (2, 4, len(names))
    assert names[:2] == ["a", "w[0, 0]"] and names[-1] == "w[9, 99]"
    assert 200 < len(names) <= 257
    chosen = names.index(names[100])
    row, column = (int(each) for each in names[chosen][2:-1].split(", "))
    assert torch.equal(values[..., chosen], draws["w"][:, :, row, column].double())


def test_constants_are_not_judged_unless_they_should_move() -> None:
    draws = {"c": torch.ones(4, 500), "x": numbers(4, 500, seed=3)}
    assert {(check.where, check.passed) for check in of_draws(draws)} == {("x", True)}
    assert of_draws({"c": torch.ones(4, 500)}) == []
    (still,) = of_still(draws)
    assert (still.value, still.where, still.passed) == (1, "c", False)
    assert of_still({"x": draws["x"]}) == []


def test_many_short_chains_need_no_more_draws_than_four() -> None:
    assert all(check.passed for check in of_draws({"x": numbers(1000, 10, seed=4)}))


def with_an_empty_site(x: Tensor, y: Tensor | None = None) -> None:
    pyro.sample("empty", dist.Normal(torch.zeros(0), 1.0).to_event(1))
    linear(x, y)


@pytest.mark.parametrize(
    ("model", "options"),
    [
        (linear, {"num_samples": 1, "num_chains": 1}),
        (linear, {"method": SGHMC(step_size=1e-7), "initial": {"w": torch.full((3,), 100.0)}, "dtype": torch.float32}),
        (with_an_empty_site, {}),
        (with_an_empty_site, {"method": "sghmc", "num_superchains": 2}),
    ],
)
def test_no_verdict_costs_the_draws(model: Any, options: dict[str, Any]) -> None:
    """One draw has no variance, one that does not move no width, an empty site no values."""
    chosen: dict[str, Any] = {"method": GOOD, "num_samples": 5, "warmup_steps": 10, "batch_size": 20, **options}
    posterior = ps.infer(model, DATA, seed=0, progress=False, jit_compile=False, thinning=1, **chosen)
    print(posterior.health)
    still = {check.name for check in posterior.verdict.checks} & {"values that stand still"}
    assert bool(still) == ("dtype" in options)


def test_errors_of_checks_are_told_and_cost_no_draws(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*arguments: Any) -> Any:
        raise ZeroDivisionError("not today")

    for name in ("of_noise", "tell"):
        monkeypatch.setattr(outcome, name, fails)
        caplog.clear()
        assert run(num_samples=5).draws["w"].shape == (4, 5, 3)
        assert caplog.messages[0] == "The run could not be judged: ZeroDivisionError: not today."


def test_all_rows_bring_no_noise_to_judge() -> None:
    """Long steps with two covariates that are nearly the same: the marginal sds are right to one per cent."""
    x = X[:, :2].clone()
    x[:, 1] = 0.95 * x[:, 0] + 0.3 * x[:, 1]
    data = {"x": x, "y": Y}

    def two(x: Tensor, y: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 10.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(x @ w, 1.0), obs=y)

    posterior = ps.infer(two, data, SGHMC(step_size=0.7), seed=0, progress=False, num_samples=400, jit_compile=False)
    assert "sd error, by momenta" not in {check.name for check in posterior.verdict.checks}


def test_known_variances_are_matched_by_name() -> None:
    def two_sites(x: Tensor, y: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(3), 10.0).to_event(1))
        b = pyro.sample("b", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(x @ w + b, 1.0), obs=y)

    taken = {"w": torch.tensor(0.02).double(), "b": torch.tensor(0.0).double()}
    options: dict[str, Any] = {"num_samples": 60, "warmup_steps": 50, "thinning": 2, "batch_size": 20}
    found = [
        ps.infer(
            two_sites, DATA, SGHMC(step_size=0.1, gradient_variance=dict(order)), seed=0, progress=False,
            jit_compile=False, **options,
        ).health["sd error, predicted of minibatches"].value
        for order in (taken.items(), reversed(taken.items()))
    ]  # fmt: skip
    assert found[0] == pytest.approx(found[1], rel=1e-9)


def test_noise_excuses_what_it_explains() -> None:
    noisy = of_sds("x", {"a": Measured(0.3, 0.08), "b": Measured(0.12, 0.01)}, 0.1, "wide", "narrow")
    clear = of_sds("x", {"a": Measured(0.3, 0.08), "b": Measured(-0.2, 0.01)}, 0.1, "wide", "narrow")
    assert noisy is not None and noisy.passed
    assert clear is not None and not clear.passed
    assert (clear.where, clear.remedy) == ("b", "its draws are 0.80 times as wide as the posterior. narrow")


def test_warnings_name_what_failed(caplog: pytest.LogCaptureFixture) -> None:
    run(num_samples=20, warmup_steps=0, thinning=1)
    (record,) = (each for each in caplog.records if each.levelno == logging.WARNING)
    first, *rest = record.getMessage().splitlines()
    assert first.endswith("checks of the run failed (`posterior.health` makes more).")
    assert rest[0].startswith("  R-hat of w[") and "Raise num_samples or thinning." in rest[0]


def test_the_table_is_aligned() -> None:
    health = Health(
        [Check("R-hat", 1.0, 1.01, True, "w[1]"), Check("ESS, mean", 3.0, 400.0, False, "w", "few.")], ["x."]
    )
    assert str(health).splitlines() == [
        "Health: 1 of 2 checks failed",
        "  R-hat      1.000  limit 1.010  passed  w[1]",
        "  ESS, mean  3.000  limit 400    FAILED  w",
        "  ESS, mean of w: few.",
        "  x.",
    ]


def test_one_check_is_no_checks() -> None:
    passed = Check("R-hat", 1.0, 1.01, True)
    assert str(Health([passed])).splitlines()[0] == "Health: 1 check passed"
    assert str(Health([passed._replace(passed=False)])).splitlines()[0] == "Health: 1 of 1 check failed"
    assert str(Health([passed, passed])).splitlines()[0] == "Health: 2 checks passed"


def test_an_early_end_is_told_in_a_sentence() -> None:
    (stopped,) = of_ending("stopped by the callback after 5 of 20 steps")
    (failed,) = of_ending("after 5 of 20 steps chain 0 is not finite.")
    assert stopped.remedy == "the run ended early: stopped by the callback after 5 of 20 steps."
    assert failed.remedy == "the run ended early: after 5 of 20 steps chain 0 is not finite."
