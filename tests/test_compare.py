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

COLUMNS = ["mean", "sd", "mean_error", "mcse", "z", "sd_ratio", "ess_bulk", "r_hat", "seconds", "ess_per_s"]
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


def test_a_parameter_that_does_not_vary_is_no_obstacle() -> None:
    constant = torch.ones(2, 100, dtype=torch.float64)
    table = compare(
        made("fast", mu=chains(0.5, 1.0), one=constant), reference=made("exact", mu=chains(0.0, 1.0), one=constant)
    )
    assert table.loc[("fast", "all"), "mean_error"] == pytest.approx(0.5 / SD)
    assert math.isnan(table.loc[("fast", "one"), "sd_ratio"])
    only = compare(made("fast", one=constant), reference=made("exact", one=constant))
    assert only.loc[("fast", "all")].drop(["ess_bulk", "seconds", "ess_per_s"]).isna().all()


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


BAD: dict[str, tuple[list[Any], dict[str, Any], str]] = {
    "nothing": ([], {}, "compare got 0 posterior"),
    "one": ([made(mu=chains(0.0, 1.0))], {}, "compare got 1 posterior; it needs one to judge and one to judge by"),
    "draws": ([made(mu=chains(0.0, 1.0)), {"mu": chains(0.0, 1.0)}], {}, "compare got a dict; it takes posteriors"),
    "reference": ([made(mu=chains(0.0, 1.0))], {"reference": "nuts"}, "compare got a str; it takes posteriors"),
    "nothing shared": (
        [made(mu=chains(0.0, 1.0))], {"reference": made(tau=chains(0.0, 1.0))},
        r"no parameter in common: \['tau'\] and \['mu'\]",
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
