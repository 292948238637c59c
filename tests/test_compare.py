"""The table that sets posteriors against a reference, by made-up draws whose moments are known."""

from __future__ import annotations

import math
from typing import Any

import arviz as az
import numpy as np
import pytest
import torch
from pyro_scale.diagnostics import compare
from torch import Tensor

from pyro_scale.errors import ArgumentError
from pyro_scale.posterior import Posterior

COLUMNS = ["mean", "sd", "mean_error", "mcse", "z", "sd_ratio", "ess_bulk", "r_hat", "seconds", "ess_per_s",
           "q5_error", "q50_error", "q95_error", "wasserstein", "energy_distance", "energy_p", "mmd2", "mmd_p",
           "gradients", "passes"]  # fmt: skip
CYCLE = torch.tensor([-1.0, 1.0, 1.0, -1.0] * 25, dtype=torch.float64)
"""Mean 0, and sd 1 but for the divisor."""
SD = math.sqrt(200 / 199)  # of two such chains


def made(method: str = "made", seconds: float = 2.0, **draws: Tensor) -> Posterior:
    return Posterior(
        draws,
        sample_stats={},
        num_steps=100,
        step_size=None,
        timing={"capture": seconds / 4, "sample": 3 * seconds / 4} if seconds else {},
        settings={"method": method},
    )


def chains(mean: float, sd: float, num_chains: int = 2) -> Tensor:
    return (mean + sd * CYCLE).expand(num_chains, -1)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_errors_and_ratios_in_units_of_the_reference() -> None:
    reference = made("exact", mu=chains(1.0, 2.0), tau=chains(5.0, 0.5))
    judged = made("fast", mu=chains(2.0, 3.0), tau=chains(4.9, 0.5))
    table = compare(judged, reference=reference)
    assert list(table.columns) == COLUMNS
    assert table.index.names == ["posterior", "parameter"]
    assert list(table.index) == [(name, row) for name in ("exact", "fast") for row in ("mu", "tau", "all")]
    mu, tau, worst = (table.loc[("fast", row)] for row in ("mu", "tau", "all"))
    assert (mu["mean"], mu["sd"]) == pytest.approx((2.0, 3.0 * SD))
    assert mu["mean_error"] == pytest.approx(1.0 / (2.0 * SD))
    assert mu["sd_ratio"] == pytest.approx(1.5)
    assert (tau["mean_error"], tau["sd_ratio"]) == pytest.approx((-0.1 / (0.5 * SD), 1.0))
    assert (worst["mean_error"], worst["sd_ratio"]) == pytest.approx((mu["mean_error"], 1.5))
    assert math.isnan(worst["mean"]) and math.isnan(worst["sd"])
    assert (table.loc["exact", "mean_error"] == 0).all()
    assert (table.loc["exact", "sd_ratio"] == 1).all()


def test_the_worst_is_the_farthest_on_either_side() -> None:
    reference = made(mu=chains(0.0, 1.0), tau=chains(0.0, 1.0), nu=chains(0.0, 1.0))
    judged = made("fast", mu=chains(0.2, 1.3), tau=chains(-0.3, 0.6), nu=chains(0.1, 1.0))
    worst = compare(judged, reference=reference).loc[("fast", "all")]
    assert worst["mean_error"] == pytest.approx(-0.3 / SD)
    assert worst["sd_ratio"] == pytest.approx(0.6)


def test_monte_carlo_errors_add_up() -> None:
    reference, judged = made(mu=1 + 2 * noise(4, 300)), made("fast", mu=noise(4, 300, seed=1).cumsum(1) / 10)
    table = compare(judged, reference=reference)

    def mcse(posterior: Posterior) -> float:
        return float(az.mcse(posterior.draws["mu"].numpy(), method="mean"))

    sd = float(reference.draws["mu"].std())
    assert table.loc[("fast", "mu"), "mcse"] == pytest.approx(math.hypot(mcse(reference), mcse(judged)) / sd)
    assert table.loc[("made", "mu"), "mcse"] == pytest.approx(mcse(reference) / sd)
    assert table.loc[("fast", "all"), "mcse"] == table.loc[("fast", "mu"), "mcse"]


def test_sizes_and_speeds_are_those_of_arviz_and_of_the_whole_time() -> None:
    first, second = noise(4, 300), noise(4, 300, seed=1).cumsum(1)
    table = compare(
        made("fast", seconds=8.0, w=torch.stack([first, second], -1)), reference=made("exact", w=second[..., None])
    )
    row, worst = table.loc[("fast", "w[0]")], table.loc[("fast", "all")]
    assert "w[1]" not in table.index.get_level_values("parameter")  # the reference lacks it
    assert row["ess_bulk"] == pytest.approx(float(az.ess(first.numpy())))
    assert row["r_hat"] == pytest.approx(float(az.rhat(first.numpy())))
    assert row["seconds"] == worst["seconds"] == 8.0
    assert row["ess_per_s"] == pytest.approx(row["ess_bulk"] / 8.0)
    both = compare(made("fast", w=torch.stack([first, second], -1)), made("other", w=torch.stack([first, first], -1)))
    worst = both.loc[("fast", "all")]
    assert worst["ess_bulk"] == pytest.approx(float(az.ess(second.numpy())))
    assert worst["r_hat"] == pytest.approx(float(az.rhat(second.numpy())))
    assert worst["ess_per_s"] == pytest.approx(worst["ess_bulk"] / 2.0)


def test_the_first_posterior_is_the_reference_unless_one_is_named() -> None:
    one, other = made("one", mu=chains(0.0, 1.0)), made("other", mu=chains(1.0, 2.0))
    assert compare(one, other).loc[("other", "mu"), "sd_ratio"] == pytest.approx(2.0)
    assert compare(one, reference=other).loc[("one", "mu"), "sd_ratio"] == pytest.approx(0.5)
    assert list(dict.fromkeys(compare(one, reference=other).index.get_level_values(0))) == ["other", "one"]


def test_repeated_methods_are_numbered() -> None:
    posteriors = [made(method, mu=chains(0.0, 1.0)) for method in ("SGHMC", "NUTS", "SGHMC", "SGLD", "SGHMC")]
    labels = list(dict.fromkeys(compare(*posteriors).index.get_level_values(0)))
    assert labels == ["SGHMC 1", "NUTS", "SGHMC 2", "SGLD", "SGHMC 3"]


def test_a_posterior_without_a_method_has_a_label() -> None:
    nameless = made(mu=chains(0.0, 1.0))
    nameless.settings.clear()
    assert ("unknown", "mu") in compare(nameless, reference=made(mu=chains(0.0, 1.0))).index


def test_only_shared_parameters_are_compared_in_the_order_of_the_reference() -> None:
    reference = made("exact", b=noise(2, 50, 3), a=noise(2, 50), c=noise(2, 50))
    judged = made("fast", a=noise(2, 50), b=noise(2, 50, 2), extra=noise(2, 50))
    found = list(compare(judged, reference=reference).loc["fast"].index)
    assert found == ["b[0]", "b[1]", "a", "all"]


def test_matrices_are_labelled_by_row_and_column() -> None:
    both = [made(method, w=noise(2, 50, 2, 2)) for method in ("one", "other")]
    assert list(compare(*both).loc["one"].index) == ["w[0, 0]", "w[0, 1]", "w[1, 0]", "w[1, 1]", "all"]


def test_different_numbers_of_chains_and_draws() -> None:
    table = compare(made("fast", mu=noise(3, 40)), reference=made("exact", mu=noise(1, 1000, seed=1)))
    assert abs(table.loc[("fast", "mu"), "mean_error"]) < 1
    assert math.isnan(table.loc[("exact", "mu"), "r_hat"])
    assert table.loc[("exact", "mu"), "ess_bulk"] > 500
    assert not math.isnan(table.loc[("fast", "mu"), "r_hat"])


def test_a_single_draw_has_a_mean_only() -> None:
    table = compare(made("map", mu=torch.ones(1, 1)), reference=made("exact", mu=chains(0.0, 1.0)))
    assert table.loc[("map", "mu"), "mean_error"] == pytest.approx(1 / SD)
    assert table.loc[("map", "mu"), ["sd", "sd_ratio", "ess_bulk", "r_hat", "mcse", "ess_per_s"]].isna().all()
    assert table.loc[("map", "all"), "mean_error"] == pytest.approx(1 / SD)
    assert table.loc[("map", "mu"), "wasserstein"] == pytest.approx(1 / SD)  # all of it is moved by 0 or by 2
    assert table.loc[("map", "all"), "energy_distance"] > 0
    assert table.loc[("map", "all"), ["energy_p", "mmd_p"]].isna().all()


def test_a_parameter_that_does_not_vary_is_no_obstacle() -> None:
    constant = torch.ones(2, 100, dtype=torch.float64)
    table = compare(
        made("fast", mu=chains(0.5, 1.0), one=constant), reference=made("exact", mu=chains(0.0, 1.0), one=constant)
    )
    assert table.loc[("fast", "all"), "mean_error"] == pytest.approx(0.5 / SD)
    assert math.isnan(table.loc[("fast", "one"), "sd_ratio"])
    only = compare(made("fast", one=constant), reference=made("exact", one=constant))
    assert only.loc[("fast", "all")].drop(["seconds", "gradients"]).isna().all()
    assert table.loc["fast", "ess_bulk"].isna().tolist() == [False, True, False]  # of what does not vary not known


def test_draws_of_every_type() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.int64, torch.bool):
        values = (noise(2, 100) > 0).to(dtype)
        table = compare(made("fast", k=values), reference=made("exact", k=values.double()))
        assert table.loc[("fast", "k"), "sd_ratio"] == pytest.approx(1.0)


def test_no_time_no_speed() -> None:
    table = compare(made("fast", seconds=0.0, mu=chains(0.0, 1.0)), reference=made("exact", mu=chains(0.0, 1.0)))
    assert math.isnan(table.loc[("fast", "mu"), "ess_per_s"])


def test_numbers_can_be_selected_and_formatted() -> None:
    table = compare(made("fast", mu=noise(2, 50)), reference=made("exact", mu=noise(2, 50, seed=1)))
    assert all(dtype == np.float64 for dtype in table.dtypes)
    assert "mean_error" in table.round(2).to_string()


def test_quantiles_and_wasserstein_are_those_of_numpy_and_scipy() -> None:
    one, other = 2 + 3 * noise(4, 300), noise(3, 200, seed=1).exp()
    flat, base = (each.flatten().numpy() for each in (other, one))
    row = compare(made("fast", mu=other), reference=made("exact", mu=one)).loc[("fast", "mu")]
    sd = base.std(ddof=1)
    for share in (5, 50, 95):
        expected = (np.percentile(flat, share) - np.percentile(base, share)) / sd
        assert row[f"q{share}_error"] == pytest.approx(expected, rel=1e-9)
    levels = (np.arange(600_000) + 0.5) / 600_000  # the area between the two quantile functions
    area = np.abs(np.sort(flat)[(levels * 600).astype(int)] - np.sort(base)[(levels * 1200).astype(int)]).mean()
    assert row["wasserstein"] == pytest.approx(area / sd, rel=1e-9)


def test_the_whole_has_the_largest_errors() -> None:
    mu, nu = noise(2, 400), noise(2, 400, seed=1)
    judged = compare(made("fast", mu=mu + 0.2, nu=2 * nu - 0.1), reference=made("exact", mu=mu, nu=nu)).loc["fast"]
    for column in ("q5_error", "q95_error", "wasserstein"):
        assert judged.loc["all", column] == judged.loc["nu", column]
    assert judged.loc["all", "q5_error"] < 0 < judged.loc["all", "q95_error"]
    assert judged.loc[["mu", "nu"], ["energy_distance", "energy_p", "mmd2", "mmd_p"]].isna().all(axis=None)
    assert judged.loc["all", "energy_p"] == judged.loc["all", "mmd_p"] == 0.001


def test_distances_are_in_sds_of_the_reference_and_of_what_varies() -> None:
    mu, nu, still = noise(2, 300), noise(2, 300, seed=1), torch.full((2, 300), 1 / 3)
    scale = torch.tensor([1.0, 1000.0], dtype=torch.float64)

    def whole(scale: Tensor, **more: Tensor) -> Any:
        moved = torch.stack([mu + 0.3, nu - 0.2], -1).flip(1) * scale
        reference = made("exact", w=torch.stack([mu, nu], -1) * scale, **more)
        return compare(made("fast", w=moved, **more), reference=reference).loc[("fast", "all")]

    one = whole(torch.ones(2, dtype=torch.float64))
    for other in (whole(scale), whole(scale, still=still)):
        for column in ("energy_distance", "mmd2", "energy_p"):
            assert other[column] == pytest.approx(one[column], rel=1e-6)


def test_the_same_law_and_the_reference_itself() -> None:
    table = compare(made("fast", mu=noise(4, 500, 3)), reference=made("exact", mu=noise(4, 500, 3, seed=1)))
    assert abs(table.loc[("fast", "all"), "energy_distance"]) < 0.02
    assert table.loc[("fast", "all"), "energy_p"] > 0.05
    itself = table.loc[("exact", "all")]
    assert itself[["energy_distance", "mmd2", "wasserstein", "q5_error", "q50_error", "q95_error"]].eq(0).all()
    assert itself[["energy_p", "mmd_p"]].isna().all()


@pytest.mark.parametrize("shape", [(1, 500), (20, 1), (3, 1), (2, 3), (1, 1)])
def test_every_number_of_chains_and_draws(shape: tuple[int, int]) -> None:
    """A normal approximation, ensembles large and small, chains too short for any ESS, a mode."""
    table = compare(made("fast", mu=noise(*shape, 2)), reference=made("exact", mu=noise(4, 200, 2, seed=1)))
    row, whole = table.loc[("fast", "mu[1]")], table.loc[("fast", "all")]
    assert math.isnan(row["r_hat"])
    assert math.isnan(row["ess_bulk"]) == (shape[1] < 4)
    assert math.isnan(row["sd"]) == (shape == (1, 1))
    assert math.isnan(whole["energy_p"]) == (shape[0] * shape[1] < 8)
    assert math.isfinite(whole["energy_distance"]) and math.isfinite(row["wasserstein"])


def test_what_a_run_cost() -> None:
    posterior = made("fast", mu=chains(0.0, 1.0, num_chains=4))
    posterior.settings.update(num_data=1000, batch_size=50)
    whole = made("exact", mu=chains(0.0, 1.0))
    whole.settings.update(num_data=1000, batch_size=None)
    table = compare(posterior, reference=whole)
    assert (table.loc["fast", "gradients"] == 400).all() and (table.loc["fast", "passes"] == 20).all()
    assert (table.loc["exact", "gradients"] == 200).all() and (table.loc["exact", "passes"] == 200).all()


def test_what_a_fit_cost_is_not_guessed_from_its_steps() -> None:
    """Nor are its draws, or particles, a chain that mixes."""
    fit, reference = made("fit", mu=noise(4, 100)), made("exact", mu=noise(4, 200, seed=1))
    fit.settings.update(num_data=1000, batch_size=50)
    fit.trace = torch.zeros(1, 100)
    table = compare(fit, reference=reference)
    assert table.loc["fit", ["gradients", "passes", "ess_bulk", "ess_per_s"]].isna().all(axis=None)
    assert table.loc["exact", ["gradients", "ess_bulk", "ess_per_s"]].notna().all(axis=None)
    assert table.loc[("fit", "all"), "energy_p"] > 0.001 and (table.loc["fit", "seconds"] == 2.0).all()
    fit.settings["gradients"] = 300
    assert (compare(fit, reference=reference).loc["fit", ["gradients", "passes"]] == [300, 15]).all(axis=None)
    nothing = made("made up", mu=noise(4, 100))
    nothing.num_steps = 0
    assert compare(nothing, reference=reference).loc["made up", "gradients"].isna().all()


def test_draws_that_are_not_finite_are_told_by_nan() -> None:
    broken = noise(2, 100, 2)
    broken[0, 3, 0] = torch.nan
    table = compare(made("fast", mu=broken), reference=made("exact", mu=noise(2, 100, 2, seed=1)))
    row, whole = table.loc[("fast", "mu[0]")], table.loc[("fast", "all")]
    assert row[["mean", "sd", "wasserstein", "q5_error", "ess_bulk", "r_hat"]].isna().all()
    assert not math.isnan(table.loc[("fast", "mu[1]"), "mean_error"])
    assert whole.drop(["seconds", "gradients"]).isna().all() and whole["gradients"] == 200
    of_reference = compare(made("fast", mu=noise(2, 100, 2)), reference=made("exact", mu=broken))
    for name in ("fast", "exact"):
        assert of_reference.loc[(name, "all")].drop(["seconds", "gradients"]).isna().all()


def test_a_reference_that_does_not_vary_is_no_unit() -> None:
    reference = made("exact", mu=noise(2, 100), one=torch.full((2, 100), 1 / 3, dtype=torch.float64))
    judged = made("fast", mu=noise(2, 100, seed=1), one=torch.full((2, 100), 1 / 3 + 1e-15, dtype=torch.float64))
    table = compare(judged, reference=reference)
    assert table.loc[("fast", "one"), ["mean_error", "z", "sd_ratio", "q5_error", "wasserstein"]].isna().all()
    assert table.loc[("fast", "all"), "mean_error"] == table.loc[("fast", "mu"), "mean_error"]
    assert np.isfinite(table.loc[("fast", "all"), ["z", "wasserstein", "q5_error", "energy_p"]].astype(float)).all()


def test_seeds_decide_the_relabellings() -> None:
    one, other = made("fast", mu=noise(2, 100)), made("exact", mu=noise(2, 100, seed=1))
    p_values = [compare(one, reference=other, seed=seed).loc[("fast", "all"), "energy_p"] for seed in (0, 0, 1)]
    assert p_values[0] == p_values[1] != p_values[2]
    with pytest.raises(ArgumentError, match="seed is -1"):
        compare(one, reference=other, seed=-1)


BAD: dict[str, tuple[list[Any], dict[str, Any], str]] = {
    "nothing": ([], {}, "compare got 0 posterior"),
    "one": ([made(mu=chains(0.0, 1.0))], {}, "compare got 1 posterior; it needs one to judge and one to judge by"),
    "draws": ([made(mu=chains(0.0, 1.0)), {"mu": chains(0.0, 1.0)}], {}, "compare got a dict; it takes posteriors"),
    "reference": ([made(mu=chains(0.0, 1.0))], {"reference": "nuts"}, "compare got a str; it takes posteriors"),
    "nothing shared": (
        [made(mu=chains(0.0, 1.0))], {"reference": made(tau=chains(0.0, 1.0))},
        r"no parameter in common: \['tau'\] and \['mu'\]. Compare posteriors of one model",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_compared(name: str) -> None:
    posteriors, named, message = BAD[name]
    with pytest.raises(ArgumentError, match=message):
        compare(*posteriors, **named)


def test_errors_are_told_in_their_standard_errors() -> None:
    mu, nu = noise(4, 200, seed=3), noise(4, 200, seed=4)
    table = compare(made("fast", mu=mu + 0.01, nu=nu - 1.0), reference=made("exact", mu=mu, nu=nu))
    judged = table.loc["fast"]
    assert judged.loc["nu", "z"] == pytest.approx(judged.loc["nu", "mean_error"] / judged.loc["nu", "mcse"])
    assert judged.loc["nu", "z"] < -15
    assert abs(judged.loc["mu", "z"]) < 3
    assert judged.loc["all", "z"] == judged.loc["nu", "z"]


def test_the_parameter_that_mixes_worst_decides_what_is_independent() -> None:
    """Of 400 draws of a random walk next to none are, whatever the other parameter does."""
    walk = noise(2, 200, seed=5).cumsum(1)
    quick, slow = made("quick", mu=noise(2, 200), nu=noise(2, 200, seed=1)), made("slow", mu=noise(2, 200), nu=walk)
    reference = made("exact", mu=noise(2, 200, seed=2), nu=noise(2, 200, seed=3))
    table = compare(quick, slow, reference=reference)
    assert not math.isnan(table.loc[("quick", "all"), "energy_p"])
    whole = table.loc[("slow", "all")]
    assert math.isnan(whole["energy_p"]) and math.isnan(whole["mmd_p"])
    assert math.isfinite(whole["energy_distance"])
