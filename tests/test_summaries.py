"""The numbers behind a summary and behind the pictures of a report, against closed forms and other implementations."""

from __future__ import annotations

import math

import arviz as az
import numpy as np
import pytest
import torch
from posterior_cases import generator
from pyro_scale.diagnostics import summary
from pyro_scale.diagnostics.chain_plots import correlation, line
from pyro_scale.diagnostics.figures import axes_of, picture
from pyro_scale.diagnostics.tables import measured, number
from torch import Tensor

from pyro_scale.convergence import ess, rhat
from pyro_scale.posterior import Posterior


def made(**draws: Tensor) -> Posterior:
    return Posterior(draws, sample_stats={}, num_steps=1, step_size=None, timing={}, settings={})


def normals(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator(0), dtype=torch.float64)


def test_moments_and_quantiles_are_those_of_an_even_grid() -> None:
    row = summary(made(w=torch.arange(101.0).reshape(1, 101))).loc["w"]
    assert (row["mean"], row["q5"], row["median"], row["q95"]) == (50, 5, 50, 95)
    assert row["sd"] == pytest.approx(math.sqrt(101 * 102 / 12))  # n (n + 1) / 12 for 0 .. n - 1
    assert math.isnan(row["r_hat"]) and row["ess_bulk"] > 0


def test_sizes_and_r_hat_are_those_of_the_verdict_too() -> None:
    """ArviZ's here, our own of `convergence` there."""
    draws = normals(4, 250, 2, 3).cumsum(1) * 0.1 + normals(4, 250, 2, 3)
    table = summary(made(w=draws))
    assert list(table.index) == [f"w[{i}, {j}]" for i in range(2) for j in range(3)]
    bulk, tail = ess(draws)
    for column, wanted in (("ess_bulk", bulk), ("ess_tail", tail), ("r_hat", rhat(draws))):
        np.testing.assert_allclose(table[column], wanted.flatten(), rtol=1e-8)


def test_what_is_not_known_is_nan() -> None:
    draws = normals(2, 50, 2)
    draws[0, 3, 1] = torch.nan
    table = summary(made(w=draws, still=torch.ones(2, 50), one=normals(2, 50)))
    assert table.loc["w[1]"].isna().all() and table.loc[["w[0]", "one"]].notna().all(axis=None)
    assert table.loc["still", "sd"] == 0 and math.isnan(table.loc["still", "r_hat"])
    point = summary(made(w=torch.tensor([[3.0]]))).loc["w"]
    assert (point["mean"], point["median"]) == (3, 3) and point.drop(["mean", "q5", "median", "q95"]).isna().all()


def test_autocorrelation_is_the_sum_that_defines_it() -> None:
    chain = normals(200).cumsum(0).numpy()
    centered = chain - chain.mean()
    direct = [float(centered[: 200 - lag] @ centered[lag:]) / float(centered @ centered) for lag in range(200)]
    np.testing.assert_allclose(correlation(chain), direct, atol=1e-12)
    np.testing.assert_allclose(correlation(chain), az.autocorr(chain), atol=1e-6)
    assert correlation(np.ones(5)).tolist() == [1, 0, 0, 0, 0]


def test_a_long_line_keeps_its_extremes_in_their_place() -> None:
    values = normals(10_000).numpy()
    values[1234], values[1235] = 9.0, -9.0
    x, y = line(values)
    assert len(x) == 800 and (np.diff(x) >= 0).all() and (values[x] == y).all()
    assert y.max() == 9.0 and y.min() == -9.0 and list(x[y == 9.0]) == [1234]
    assert line(values[:50])[0].tolist() == list(range(50))


@pytest.mark.parametrize(
    ("value", "column", "decimals", "shown"),
    [
        (math.nan, "", None, "–"), (math.inf, "", None, "∞"), (-math.inf, "mean", 2, "−∞"),
        (1234.6, "ess_bulk", 3, "1235"),
        (1.00049, "r_hat", None, "1.000"), (-0.004, "z", 3, "0.0"), (-1.256, "mean", 2, "−1.26"),
        (0.5, "mcse_mean", 2, "0.500"),
        (1234567.0, "", None, "1.23e+06"), (0.00012345, "", None, "0.000123"),
    ],
)  # fmt: skip
def test_numbers_have_the_digits_of_their_column(value: float, column: str, decimals: int, shown: str) -> None:
    assert number(value, column, decimals) == shown


def test_numbers_of_checks_are_those_of_the_verdict() -> None:
    assert [measured(each) for each in (1.01, 400, 4213.2, 0.0, math.inf)] == ["1.010", "400", "4,213", "0", "∞"]


def test_pictures_leave_no_trace_and_are_the_same_every_time() -> None:
    import matplotlib

    before, backend = dict(matplotlib.rcParams), matplotlib.get_backend()

    def draw(on: object) -> None:
        axes_of(on, xlabel="$x<y$").plot([0, 1], [1, 1.23456789])

    first, second = picture(draw, "a & b"), picture(draw, "a & b")
    assert first == second and 'aria-label="a &amp; b"' in first and "$x&lt;y$" in first
    assert dict(matplotlib.rcParams) == before and matplotlib.get_backend() == backend
