"""Simulation-based calibration: exact and damaged posteriors of conjugate models, and what cannot be simulated."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from posterior_cases import generator
from pyro_scale.diagnostics import nuts, sbc
from pyro_scale.diagnostics.ranks import Ranks
from pyro_scale.diagnostics.simulation import Simulator
from scipy import stats
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from pyro_scale.errors import ArgumentError, DataError, ModelError
from pyro_scale.kernels import SGHMC

NUM_ROWS = 15
Y = torch.zeros(NUM_ROWS, dtype=torch.float64)


def known_variance(y: Tensor) -> None:
    """The posterior is Normal(sum(y) / (N + 1), 1 / (N + 1))."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("obs", dist.Normal(mu, 1.0), obs=y)


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def damaged(scale: float = 1.0, shift: float = 0.0, num_draws: int = 400) -> Callable[..., dict[str, Tensor]]:
    """Independent draws of the exact posterior, its sd times `scale`, its mean moved by `shift` sds."""

    def fit(data: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
        sd = (NUM_ROWS + 1) ** -0.5
        return {"mu": data["y"].sum() / (NUM_ROWS + 1) + sd * (shift + scale * noise(seed, 2, num_draws // 2))}

    return fit


def calibrated(scale: float = 1.0, shift: float = 0.0, **changed: Any) -> Ranks:
    return sbc(known_variance, {"y": Y}, damaged(scale, shift), **{"num_simulations": 300, "seed": 1, **changed})


@pytest.fixture(scope="module")
def exact() -> Ranks:
    return calibrated()


@pytest.fixture(scope="module")
def moved() -> Ranks:
    return calibrated(shift=0.2)


def test_an_exact_method_passes(exact: Ranks) -> None:
    """Fails by chance once in a thousand."""
    print(exact)
    assert exact.p_value > 0.001 and exact.passed
    assert exact.ranks.shape == (300, 2) and list(exact.ranks.columns) == ["mu", "log-likelihood"]
    assert abs(exact.table.loc["mu", "mean_error"]) < 0.2 and abs(exact.table.loc["mu", "sd_ratio"] - 1) < 0.15
    assert list(exact.table["verdict"]) == ["", ""] and not exact.failures


def test_narrow_draws_are_found_by_their_width() -> None:
    """By the corrected p-value in 99 of 100 runs; uniformity alone finds it in 64, symmetry never."""
    found = calibrated(scale=0.8)
    print(found)
    assert found.p_value < 0.05
    row = found.table.loc["mu"]
    assert not found.passed and row["width"] < 1e-3 and row["verdict"] == "draws too narrow"
    assert row["asymmetry"] > 0.01 and 0.7 < row["sd_ratio"] < 0.9


def test_wide_draws_are_found_by_their_width() -> None:
    row = calibrated(scale=1.3).table.loc["mu"]
    assert row["width"] < 1e-3 and row["verdict"] == "draws too wide" and row["sd_ratio"] > 1.1


def test_moved_draws_are_found_by_their_asymmetry(moved: Ranks) -> None:
    """By the corrected p-value in 80 of 100 runs, by the test's own at 0.05 in 93; width never finds it."""
    print(moved)
    assert moved.p_value < 0.05
    row = moved.table.loc["mu"]
    assert not moved.passed and row["asymmetry"] < 1e-3 and row["verdict"] == "draws too high"
    assert row["width"] > 0.01 and 0.1 < row["mean_error"] < 0.35
    low = calibrated(shift=-0.3).table.loc["mu"]
    assert low["verdict"] == "draws too low" and low["mean_error"] < -0.15


def conjugate(seed: int, shift: float = 0.0, scale: float = 1.0, size: int = 1, number: int = 300) -> Ranks:
    """What `sbc` finds of a normal posterior, whose true values are among its draws where a normal says."""
    rng = np.random.default_rng(seed)
    below = rng.binomial(100, stats.norm.cdf((rng.standard_normal((number, size)) - shift) / scale))
    return Ranks(pd.DataFrame((below + rng.random((number, size))) / 101), 100)


@pytest.mark.parametrize("shift", [0.7, -0.7])
def test_moved_draws_have_the_right_width(shift: float) -> None:
    """About 0 the scores' squares would sum to half as much again. Ranks of draws so far off are a little too wide."""
    found = [conjugate(seed, shift).table.loc[0, "verdict"] for seed in range(20)]
    print(found)
    assert found.count("draws too high" if shift > 0 else "draws too low") >= 15


def test_a_method_that_ignores_the_data_is_found_by_the_log_likelihood() -> None:
    def prior(data: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
        return {"mu": noise(seed, 1, 100)}

    found = sbc(known_variance, {"y": Y}, prior, num_simulations=40, seed=0)
    assert not found.passed
    assert found.table.loc["mu", "p_value"] > 0.01 and found.table.loc["log-likelihood", "p_value"] < 1e-6


def test_false_alarms_are_as_rare_as_they_say() -> None:
    """Of 300 uniform tables a level of 0.05 rejects 15 or fewer on average; more than 27 come once in a thousand."""
    rng = np.random.default_rng(0)
    found = [Ranks(pd.DataFrame(rng.random((60, 5))), 100) for _ in range(300)]
    rejected = sum(not each.passed for each in found)
    print(rejected)
    assert rejected <= 27
    together = np.array([each.together for each in found])
    assert stats.kstest(together, "uniform").pvalue > 1e-3
    for test in ("uniformity", "width", "asymmetry"):
        values = np.concatenate([each.table[test] for each in found[:200]])
        assert 0.03 < (values < 0.05).mean() < 0.07  # 1000 of them: sd 0.007


def test_the_tests_are_those_of_scipy(moved: Ranks) -> None:
    ranks = moved.ranks["mu"].to_numpy()
    counts, _ = np.histogram(ranks, bins=15, range=(0, 1))
    row = moved.table.loc["mu"]
    assert row["uniformity"] == pytest.approx(stats.chisquare(counts).pvalue)
    scores = stats.norm.ppf(ranks)
    assert row["asymmetry"] == pytest.approx(
        2 * min(stats.combine_pvalues(each, "stouffer").pvalue for each in (ranks, 1 - ranks))
    )
    tail = stats.chi2.sf(299 * scores.var(ddof=1), 299)
    assert row["width"] == pytest.approx(2 * min(tail, 1 - tail))
    assert row["p_value"] == pytest.approx(min(1, 7 * min(row["uniformity"], row["width"], row["asymmetry"])))
    assert moved.num_tests == 7
    assert moved.p_value == pytest.approx(min(moved.table["p_value"].min(), 7 * moved.together))
    # the F of a regression of ones on the scores, without an intercept
    scores = stats.norm.ppf(moved.ranks.to_numpy())
    _, rest, *_ = np.linalg.lstsq(scores, np.ones(300))
    share = 1 - float(rest[0]) / 300
    assert moved.together == pytest.approx(stats.f.sf(share / (1 - share) * 298 / 2, 2, 298))


def test_a_shift_of_a_fifth_is_found_and_an_exact_method_is_not(exact: Ranks, moved: Ranks) -> None:
    """The first in 80 of 100 runs, and no two-sided test at a seventh of the level finds it in more than 78."""
    assert moved.p_value < 0.05 and exact.p_value > 0.001
    found = [conjugate(seed, 0.2, size=3).p_value for seed in range(40)]
    print(found)
    assert sum(each < 0.05 for each in found) >= 36  # of 0.99, fewer once in 10,000
    assert min(conjugate(seed, size=3).p_value for seed in range(40)) > 1e-4


def test_the_power_is_what_is_printed() -> None:
    """Of 150 runs 0.9 find the shift, in a standard error of 0.025; at least as many the sd."""
    shift, error = conjugate(0, number=200).detectable

    def power(shift: float, scale: float) -> float:
        return float(np.mean([conjugate(seed, shift, scale, number=200).p_value < 0.05 for seed in range(150)]))

    found = power(shift, 1.0), power(0.0, 1 - error), power(0.0, 1 + error)
    print(shift, error, found)
    assert abs(found[0] - 0.9) < 0.08 and found[1] > 0.82 and found[2] > 0.82
    assert f"moved by {shift:.2f} posterior sds" in str(conjugate(0, number=200))


def test_small_shifts_of_many_parameters_are_found_together() -> None:
    """Ten moved by 0.1: together in 80 of 100 runs, one by one in 59."""
    found = [conjugate(seed, 0.1, size=10) for seed in range(50)]
    together, alone = (
        [each.together * each.num_tests < 0.05 for each in found],
        [each.table["p_value"].min() < 0.05 for each in found],
    )
    print(sum(together), sum(alone))
    assert sum(together) > 30 and found[0].num_tests == 31
    silent = next(each for each, this, other in zip(found, together, alone, strict=True) if this and not other)
    assert not silent.passed and "All parameters together are moved" in str(silent)
    assert np.isnan(conjugate(0, size=10, number=30).together)  # too few for so many


def several(x: Tensor, y: Tensor, count: Tensor, s0: float = 1.0) -> None:
    """A matrix, a positive scalar, a deterministic site, two observed sites of which one counts."""
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2, 2]).to_event(2))
    s = pyro.sample("s", dist.HalfNormal(s0))
    pyro.deterministic("total", w.sum())
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.Normal(x @ w, s).to_event(1), obs=y)
        pyro.sample("n", dist.Poisson((x[:, 0] + s).exp().clamp(max=1e3)), obs=count)


DATA = {"x": noise(3, 8, 2), "y": torch.zeros(8, 2, dtype=torch.float64), "count": torch.zeros(8, dtype=torch.long)}


def test_what_is_simulated_follows_the_model() -> None:
    """Each against its own distribution; in 400 draws a Kolmogorov-Smirnov p below 0.001 comes once in a thousand."""
    simulator = Simulator(several, DATA, {"s0": 2.0})
    drawn = [simulator.draw(seed) for seed in range(400)]
    first = drawn[0]
    assert first.values.keys() == {"w", "s", "total"}
    assert torch.equal(first.data["x"], DATA["x"]) and first.data["count"].dtype == torch.long
    assert not torch.equal(first.data["y"], drawn[1].data["y"])
    assert torch.equal(first.data["y"], simulator.draw(0).data["y"])
    s = np.array([float(each.values["s"]) for each in drawn])
    w = np.array([each.values["w"].numpy() for each in drawn])
    residuals = [(each.data["y"] - DATA["x"] @ each.values["w"]) / each.values["s"] for each in drawn]
    assert stats.kstest(s, stats.halfnorm(scale=2.0).cdf).pvalue > 0.001
    assert stats.kstest(w.flatten(), stats.norm.cdf).pvalue > 0.001
    assert stats.kstest(torch.stack(residuals).flatten().numpy(), stats.norm.cdf).pvalue > 0.001
    at = {name: first.values[name] for name in ("w", "s")}
    expected = dist.Normal(DATA["x"] @ at["w"], at["s"]).log_prob(first.data["y"]).sum()
    assert float(first.compiled.log_likelihood_at(at)["obs"].sum()) == pytest.approx(float(expected))


def prior_of_several(data: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    w, s = noise(seed, 1, 50, 2, 2), 2.0 * noise(seed + 1, 1, 50).abs()
    return {"w": w, "s": s, "total": w.sum((-1, -2))}


def test_every_coordinate_and_function_is_ranked() -> None:
    functions = {"norm": lambda draw: draw["w"].norm()}
    arguments: dict[str, Any] = {"num_simulations": 20, "num_draws": 25, "seed": 0, "constants": {"s0": 2.0}}
    found = sbc(several, DATA, prior_of_several, functions=functions, **arguments)
    matrix = [f"w[{i}, {j}]" for i in range(2) for j in range(2)]
    assert list(found.ranks.columns) == [*matrix, "s", "norm", "log-likelihood"]
    assert found.num_draws <= 25
    chosen = sbc(several, DATA, prior_of_several, sites=["total"], **arguments)
    assert list(chosen.ranks.columns) == ["total", "log-likelihood"]


def test_ranks_are_of_the_right_coordinate_and_sign() -> None:
    def fit(data: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
        w = torch.zeros(1, 10, 2, 2, dtype=torch.float64)
        w[..., 0, 0], w[..., 0, 1], w[..., 1, 0] = -100, 100, noise(seed, 1, 10)
        return {"w": w + 1e-3 * noise(seed, 1, 10, 2, 2), "s": torch.ones(1, 10)}

    found = sbc(several, DATA, fit, num_simulations=20, num_draws=10, seed=0).ranks
    assert (found["w[0, 0]"] > 0.8).all() and (found["w[0, 1]"] < 0.2).all()
    assert found["w[1, 0]"].std() > 0.1


def test_equal_draws_have_a_rank_at_random() -> None:
    def flip(data: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
        return {"mu": noise(seed, 1, 100)}

    found = sbc(
        known_variance, {"y": Y}, flip, functions={"sign": lambda draw: draw["mu"].sign()}, num_simulations=200, seed=0
    )
    assert found.table.loc["sign", "p_value"] > 0.001


def test_correlated_draws_are_thinned() -> None:
    """Chains of correlation 0.9: 1000 draws are worth some 53, and among 500 of them ranks would lie at the ends."""

    def fit(data: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
        chain = noise(seed, 1, 1000)
        for i in range(1, 1000):
            chain[:, i] = 0.9 * chain[:, i - 1] + 0.19**0.5 * chain[:, i]
        return {"mu": (data["y"].sum() / (NUM_ROWS + 1)) + chain / (NUM_ROWS + 1) ** 0.5}

    found = sbc(known_variance, {"y": Y}, fit, num_simulations=60, num_draws=500, seed=2)
    print(found)
    assert 35 < found.num_draws < 80 and found.p_value > 0.001


def test_methods_by_name_by_kernel_and_nuts() -> None:
    kernel = SGHMC(step_size=0.1, friction=1.0)
    common: dict[str, Any] = {"num_simulations": 20, "num_draws": 20, "seed": 0}
    found = sbc(
        known_variance, {"y": Y}, kernel, num_samples=20, num_chains=2, thinning=4, warmup_steps=20, batch_size=5,
        jit_compile=False, **common,
    )  # fmt: skip
    assert found.ranks.shape == (20, 2) and found.p_value > 0.001
    assert found.unsound == 20 and "20 runs failed checks of their own" in str(found)  # 40 draws are few for R-hat

    calls = iter(range(20))

    def reference(data: dict[str, Tensor], seed: int) -> Any:
        if next(calls) > 1:  # NUTS takes a second
            return damaged()(data, seed)
        return nuts(known_variance, data, num_samples=60, warmup_steps=40, num_chains=1, seed=seed, progress=False)

    exact = sbc(known_variance, {"y": Y}, reference, **common)
    assert exact.ranks.shape == (20, 2) and exact.p_value > 0.001 and not exact.failures


def test_draws_may_be_arrays() -> None:
    found = sbc(known_variance, {"y": Y}, lambda data: {"mu": np.zeros((2, 50))}, num_simulations=20, seed=0)
    assert found.table.loc["mu", "verdict"]


def test_a_function_of_the_data_alone() -> None:
    count = iter(range(1000))
    found = sbc(known_variance, {"y": Y}, lambda data: damaged()(data, next(count)), num_simulations=20, seed=0)
    assert len(found.ranks) == 20


def test_a_model_that_reads_rows_itself() -> None:
    def own(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y), subsample_size=5) as index:
            pyro.sample("obs", dist.Normal(mu, 1.0), obs=y[index])

    found = sbc(own, {"y": Y}, damaged(), num_simulations=100, seed=0)
    assert found.p_value > 0.001


def test_in_float32() -> None:
    found = sbc(known_variance, {"y": Y.float()}, damaged(), num_simulations=40, seed=0)
    assert found.p_value > 0.001


def test_what_fails_later_is_told_and_the_others_count(caplog: pytest.LogCaptureFixture) -> None:
    calls = iter(range(1000))

    def fit(data: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
        number = next(calls)
        logging.getLogger("pyro_scale").warning("said of one run")
        draws = damaged()(data, seed)
        if number == 7:
            raise ValueError("out of luck")
        if number == 9:
            draws["mu"][0, 0] = torch.nan
        if number == 30:
            raise KeyboardInterrupt
        return draws

    found = sbc(known_variance, {"y": Y}, fit, num_simulations=60, seed=0)
    assert found.failures == {7: "ValueError: out of luck", 9: "ArgumentError: Draws of site 'mu' are not finite"}
    assert len(found.ranks) == 28
    assert "2 simulations failed and have no ranks, the first at 7: ValueError: out of luck" in str(found)
    assert "Interrupted: 28 of 60 simulations are done" in caplog.text and "said of one run" not in caplog.text


def test_too_few_for_a_test() -> None:
    few = Ranks(pd.DataFrame({"mu": np.linspace(0.1, 0.9, 7)}), 100)
    assert np.isnan(few.p_value) and not few.passed
    assert "7 simulations are too few to test; at least 20 are needed" in str(few)


def test_picture(exact: Ranks, moved: Ranks) -> None:
    figure = moved.plot()
    FigureCanvasAgg(figure).draw()
    assert [axes.get_title().splitlines()[0] for axes in figure.axes] == ["mu", "log-likelihood"]
    heights = [bar.get_height() for bar in figure.axes[0].patches if bar.get_width() < 0.5]
    assert sum(heights) == 300 and heights[0] > heights[-1]
    wide = Ranks(pd.DataFrame(np.random.default_rng(0).random((40, 30))).rename(columns="w[{}]".format), 100)
    assert len(wide.plot().axes) == 12 and len(str(wide).splitlines()) == 15


def improper(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))
    with pyro.plate("data", len(y)):
        pyro.sample("obs", dist.Normal(mu, 1.0), obs=y)


def with_factor(y: Tensor) -> None:
    known_variance(y)
    with pyro.plate("more", len(y)):
        pyro.factor("extra", -(y**2))


def of_logs(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("obs", dist.Normal(mu, 1.0), obs=y.exp())


def autoregressive(y: Tensor) -> None:
    rho = pyro.sample("rho", dist.Normal(0.0, 1.0))
    before = torch.cat([torch.zeros(1), y[:-1]])
    with pyro.plate("data", len(y)):
        pyro.sample("obs", dist.Normal(rho * before, 1.0), obs=y)


def weighted(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)), pyro.poutine.scale(scale=0.5):
        pyro.sample("obs", dist.Normal(mu, 1.0), obs=y)


def closed_over() -> None:
    known_variance(Y)


def wrong(**draws: Tensor) -> Callable[..., dict[str, Tensor]]:
    return lambda data, seed: draws


Z = noise(0, NUM_ROWS)
LOADER = DataLoader(TensorDataset(Z), batch_size=5, shuffle=True)
BAD: dict[str, tuple[Any, Any, Any, dict[str, Any], type[Exception], str]] = {
    "improper": (improper, {"y": Z}, "sghmc", {}, ArgumentError, "prior cannot be drawn from.* Give every latent"),
    "factor": (with_factor, {"y": Z}, "sghmc", {}, ModelError, "Site 'extra' is a pyro.factor, from which no"),
    "transformed": (of_logs, {"y": Z}, "sghmc", {}, ModelError, "Site 'obs' observes what is no argument of the model"),
    "autoregression": (autoregressive, {"y": Z}, "sghmc", {}, ModelError, "Site 'obs' does not see what was drawn for"),
    "weights": (weighted, {"y": Z}, "sghmc", {}, ModelError, "Site 'obs' is weighted by poutine.scale"),
    "closed over": (closed_over, {}, "sghmc", {}, ArgumentError, "The model closes over its data"),
    "loader": (known_variance, LOADER, "sghmc", {}, ArgumentError, "data is a DataLoader.* Pass loader.dataset"),
    "no data": (known_variance, {}, "sghmc", {}, DataError, "data is empty"),
    "nuts": (known_variance, {"y": Z}, "nuts", {}, ArgumentError, "Pass a function: lambda data, seed: ps"),
    "unknown": (known_variance, {"y": Z}, "hmc", {}, ArgumentError, "method is 'hmc'; it must be one of"),
    "a class": (known_variance, {"y": Z}, SGHMC, {}, ArgumentError, "method is the class SGHMC; it must be"),
    "a number": (known_variance, {"y": Z}, 3, {}, ArgumentError, "method is 3; it must be the name"),
    "arguments": (known_variance, {"y": Z}, damaged(), {"batch_size": 5}, ArgumentError, "'batch_size' are for infer"),
    "few simulations": (known_variance, {"y": Z}, damaged(), {"num_simulations": 5}, ArgumentError, "at least 20"),
    "few ranks": (known_variance, {"y": Z}, damaged(), {"num_draws": 5}, ArgumentError, "num_draws is 5; .*least 10"),
    "sites": (known_variance, {"y": Z}, damaged(), {"sites": ["obs"]}, ArgumentError, r"sites is \['obs'\]; .* 'mu'"),
    "a name": (known_variance, {"y": Z}, damaged(), {"sites": "mu"}, ArgumentError, "sites is 'mu'; it must be a list"),
    "few draws": (
        known_variance, {"y": Z}, damaged(num_draws=40), {}, ArgumentError,
        "There are 40 draws, and values are to be ranked among num_draws=100. Raise num_samples, or lower num_draws",
    ),
    "one draw": (known_variance, {"y": Z}, wrong(mu=Y[:1, None]), {}, ArgumentError, "one draw of site 'mu'"),
    "another site": (known_variance, {"y": Z}, wrong(m=Y), {}, ArgumentError, "lack site 'mu': they have 'm'"),
    "shape": (known_variance, {"y": Z}, wrong(mu=Y), {}, ArgumentError, r"\(15,\); it must be \(num_chains, num_samp"),
    "no draws": (known_variance, {"y": Z}, lambda data: None, {}, ArgumentError, "method returned a NoneType; it must"),
    "not finite": (known_variance, {"y": Z}, wrong(mu=noise(0, 1, 200).log()), {}, ArgumentError, "are not finite"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_refused(name: str) -> None:
    model, data, method, arguments, error, message = BAD[name]
    with pytest.raises(error, match=message):
        sbc(model, data, method, seed=0, **arguments)
