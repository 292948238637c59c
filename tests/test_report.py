"""The page that a posterior makes: what it shows, marks and leaves out, for posteriors of every shape."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from page_reader import Page
from posterior_cases import exact_posterior, generator, posterior_of, regression
from pyro_scale.diagnostics import report, summary
from pyro_scale.diagnostics.evidence import gather
from pyro_scale.diagnostics.predictions import predicted
from torch import Tensor

import pyro_scale as ps
from pyro_scale.errors import ArgumentError, FileFormatError
from pyro_scale.health import Check
from pyro_scale.posterior import Posterior

ALWAYS = {"Summary", "Settings", "Versions"}
OF_CHAINS = {"Traces", "Ranks", "Autocorrelation", "Effective sample size", "Pairs"}
WITH_MODEL = {"Predictive check", "Calibration"}
HOSTILE = "<script>alert(1)</script>&amp;\"'$\\frac{$"


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def made(draws: dict[str, Tensor], **changed: Any) -> Posterior:
    given: dict[str, Any] = {
        "sample_stats": {}, "num_steps": 100, "step_size": 0.1, "timing": {"sample": 2.0},
        "settings": {"method": "SGHMC", "num_data": 10},
    }  # fmt: skip
    return Posterior(draws, **{**given, **changed})


def written(posterior: Any, folder: Path, **changed: Any) -> Page:
    page = Page(report(posterior, folder / "report.html", **changed))
    assert page.errors == []
    return page


@pytest.fixture(scope="module")
def rows() -> tuple[Tensor, Tensor]:
    x = normals(40, 2, seed=1)
    return x, x @ torch.tensor([1.0, -0.5], dtype=torch.float64) + 0.5 * normals(40, seed=2)


@pytest.fixture(scope="module")
def full(rows: tuple[Tensor, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Page:
    """Everything there is to show, of a posterior that is right, against one that is not."""
    posterior = exact_posterior(*rows, num_samples=200)
    posterior.sample_stats["lp"] = normals(4, 200)
    posterior.sample_stats["kinetic_temperature"] = normals(4, 200, 1).square()
    posterior.settings |= {"temperature": 1.0, "num_superchains": 2, "tuning": {"modes": 1}}
    other = posterior_of(posterior.compiled, {"w": exact_posterior(*rows, num_samples=200, seed=1).draws["w"] + 0.1})  # type: ignore[arg-type]
    return written(posterior, tmp_path_factory.mktemp("full"), reference=other)


def test_a_full_report_has_every_section(full: Page) -> None:
    expected = ALWAYS | OF_CHAINS | WITH_MODEL | {
        "Against the reference", "Superchains", "Log posterior", "Temperature", "Time", "Not shown"
    }  # fmt: skip
    assert set(full.sections) - {""} == expected
    assert "chains sample, and climb nothing" in full.sections["Not shown"]  # no objective
    assert "checks" in full.sections[""]  # the verdict stands before the first heading
    assert "2 values" in full.source and "All 2 values." in full.sections["Summary"]
    for title in OF_CHAINS | WITH_MODEL | {"Superchains", "Log posterior", "Temperature"}:
        assert len(full.sections[title]) > 100, f"{title} does not say how to read it"
    assert full.source.count("<svg") == full.source.count("aria-label=") - 2  # and the verdict's, and the links'


def test_a_page_needs_nothing_and_runs_nothing(full: Page) -> None:
    assert not full.tags & {"script", "iframe", "object", "embed", "form", "base"}
    assert "prefers-color-scheme: dark" in full.source and "@media print" in full.source
    assert "width=device-width" in full.source
    assert "#0f0f0" not in full.source and "#0a0b0c" not in full.source  # every colour is the page's


def test_the_comparison_marks_a_mean_that_is_off(full: Page, rows: tuple[Tensor, Tensor]) -> None:
    """0.1 is more than a posterior sd of about 0.08, and far beyond the Monte Carlo error of 800 draws."""
    assert {name for name, _ in full.bad} >= {"all", "w[0]", "w[1]"}
    table = full.sections["Against the reference"]
    assert "all values together differ by more than chance: p = 0.001 by energy distance and p = 0.001 by" in table
    assert table.index("p = 0.001") < table.index("mean error") < table.index("Mean error") < table.index("seconds")
    assert "this posterior" in table and "the reference" in table


def test_failed_checks_come_first_with_their_remedy_and_mark_cells(tmp_path: Path) -> None:
    good = normals(4, 400)
    apart = good + torch.arange(4.0).reshape(4, 1)
    page = written(made({"good": good, "apart": apart}), tmp_path)
    verdict = page.sections[""]
    assert verdict.index("checks failed") < verdict.index("R-hat of apart") < verdict.index("chains disagree")
    assert "Raise num_samples or thinning" in verdict
    table = summary(made({"good": good, "apart": apart}))
    marked = [cell for name, cell in page.bad if name == "apart"]
    assert f"{table.loc['apart', 'r_hat']:.3f}" in marked and f"{table.loc['apart', 'ess_bulk']:.0f}" in marked
    assert not [cell for name, cell in page.bad if name == "good"]
    assert page.source.index(">apart</h4>") < page.source.index(">good</h4>")  # the worst is shown first


def test_a_run_that_passes_says_so(tmp_path: Path) -> None:
    page = written(made({"w": normals(4, 500)}), tmp_path)
    assert "All 3 checks passed" in page.sections[""] and page.bad == [] and "−0.0<" not in page.source


def cases() -> dict[str, tuple[Posterior, set[str], dict[str, str]]]:
    """Posterior, sections that it must have, and reasons why it lacks others."""
    several, model = "it takes 2 draws a chain, and there are 1", "the model is not at hand"
    no_stats = {"lp": torch.full((2, 50), torch.nan)}
    broken = normals(4, 50, 2)
    broken[1, 3, 0] = torch.nan
    infinite = normals(2, 50)
    infinite[0, 0] = torch.inf
    return {
        "a normal, (1, n)": (
            made({"w": normals(1, 500, 3)}),
            {"Traces", "Autocorrelation", "Pairs"},
            {"Ranks": "it takes 2 chains, and there are 1. Raise num_chains."},
        ),
        "a point, (1, 1)": (
            made({"w": normals(1, 1, 3), "b": normals(1, 1)}), set(),
            {"Traces": several, "Pairs": "it takes two values"},
        ),
        "an ensemble, (chains, 1)": (made({"w": normals(50, 1, 3)}), {"Pairs"}, {"Traces": several}),
        "three draws": (made({"w": normals(2, 3)}), {"Traces"}, {"Autocorrelation": "it takes 4 draws a chain"}),
        "NaN": (made({"w": broken}), OF_CHAINS - {"Pairs"}, {"Pairs": "it takes two values that move"}),
        "infinite": (made({"w": infinite}), {"Traces"}, {}),
        "constant": (made({"w": torch.ones(4, 50, 2)}), {"Traces", "Ranks"}, {"Pairs": "and there are 0"}),
        "NaN statistics": (made({"w": normals(2, 50)}, sample_stats=no_stats), {"Traces", "Log posterior"}, {}),
        "no settings": (made({"w": normals(2, 50)}, settings={}, timing={}), {"Traces"}, {"Time": "did not keep"}),
        "integers": (made({"k": torch.arange(100).reshape(2, 50)}), {"Traces", "Ranks"}, {}),
        "half precision": (made({"w": normals(2, 50).bfloat16()}), {"Traces"}, {"Calibration": model}),
        "many chains": (made({"w": normals(40, 30)}), OF_CHAINS - {"Pairs"}, {}),
        "an empty site": (made({"w": normals(2, 50), "none": torch.zeros(2, 50, 0)}), {"Traces"}, {}),
        "large and small": (made({"w": 1e-9 * normals(2, 50), "v": 1e12 + normals(2, 50)}), OF_CHAINS, {}),
    }  # fmt: skip


CASES = cases()


@pytest.mark.parametrize("name", CASES)
def test_what_is_missing_is_said_and_the_rest_is_there(name: str, tmp_path: Path) -> None:
    posterior, there, missing = CASES[name]
    page = written(posterior, tmp_path)
    assert set(page.sections) >= ALWAYS | there
    assert not set(page.sections) & missing.keys()
    for title, reason in missing.items():
        assert f"{title}: " in page.sections["Not shown"] and reason in page.sections["Not shown"]
    assert "Error" not in page.sections["Not shown"], page.sections["Not shown"]


def test_draws_that_are_not_finite_fail(tmp_path: Path) -> None:
    page = written(CASES["NaN"][0], tmp_path)
    assert "draws that are not finite of w[0] is 1, limit 0" in page.sections[""]
    assert ("w[0]", "–") in page.bad


def test_of_many_values_the_worst_are_shown(tmp_path: Path) -> None:
    """256 of 100,001 might miss it, but at least one value of every site is looked at."""
    worst = normals(4, 50) + 10 * torch.arange(4.0).reshape(4, 1)
    page = written(made({"w": normals(4, 50, 1).expand(4, 50, 100_000), "lonely": worst}), tmp_path)
    assert "of 100,001 values were looked at" in page.sections["Summary"]
    assert page.source.index(">lonely</h4>") < page.source.index("<h4>w[")
    assert len(page.source) < 3e6
    assert page.source.count("Trace and histogram of") == 12


def test_names_of_users_stay_text(tmp_path: Path) -> None:
    posterior = made(
        {HOSTILE: normals(4, 50, 2), "scope/日本": normals(4, 50)},
        settings={"method": HOSTILE, "kernel": HOSTILE, "tuning": {HOSTILE: [HOSTILE]}},
        checks=[Check(HOSTILE, 2.0, 1.0, False, HOSTILE, HOSTILE)],
    )
    page = written(posterior, tmp_path)
    assert not page.tags & {"script", "img"}
    assert HOSTILE in page.sections["Settings"] and f"{HOSTILE}[0]" in page.sections["Summary"]
    assert "Pairs" in page.sections and "日本" in page.sections["Summary"]


def test_one_section_that_fails_leaves_the_others(tmp_path: Path, rows: tuple[Tensor, Tensor]) -> None:
    posterior = exact_posterior(*rows, num_samples=50)

    def fails(*args: Any, **kw: Any) -> None:
        raise ValueError("the model has lost its mind\nand more")

    posterior.predict = fails  # type: ignore[assignment, method-assign]
    page = written(posterior, tmp_path)
    assert "Predictive check, Calibration: ValueError: the model has lost its mind" in page.sections["Not shown"]
    assert "and more" not in page.sections["Not shown"] and set(page.sections) >= OF_CHAINS


def test_a_verdict_that_fails_leaves_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: Posterior) -> None:
        raise RuntimeError("no gradient here")

    monkeypatch.setattr(Posterior, "health", property(fails))
    page = written(made({"w": normals(4, 50)}), tmp_path)
    assert "Most checks could not be made: no gradient here." in page.sections[""] and "Traces" in page.sections


def test_a_file_makes_the_same_page_and_says_what_the_model_would_add(rows: Any, tmp_path: Path) -> None:
    posterior = exact_posterior(*rows, num_samples=50)
    posterior.checks = (Check("clamped noise", 0.5, 0.01, False, "", "too much is taken out."),)
    posterior.save(tmp_path / "run.nc")
    page = written(tmp_path / "run.nc", tmp_path)
    assert set(page.sections) >= ALWAYS | OF_CHAINS
    assert "ps.load(path, model=model, data=data)" in page.sections["Not shown"]
    assert "clamped noise is 0.500, limit 0.010: too much is taken out." in page.sections[""]
    assert summary(tmp_path / "run.nc").equals(summary(posterior))
    loaded = ps.load(tmp_path / "run.nc")
    for check in loaded.verdict.checks:  # the numbers are ArviZ's there, and ours here
        assert f"{check.value:.3f}" in page.sections[""] or f"{check.value:,.0f}" in page.sections[""]


WRONG: list[tuple[str, Callable[[Path], tuple[Any, Any]], type[Exception], str]] = [
    ("another object", lambda at: (3, at / "r.html"), ArgumentError, "posterior is a int; it must be a Posterior"),
    ("a tensor", lambda at: (torch.ones(3), at / "r.html"), ArgumentError, "posterior is a Tensor"),
    ("no such file", lambda at: (at / "none.nc", at / "r.html"), FileNotFoundError, "none.nc"),
    ("another suffix", lambda at: (at / "none.txt", at / "r.html"), FileFormatError, "wanted .nc"),
    ("no path", lambda at: (CASES["a point, (1, 1)"][0], None), ArgumentError, "path is None; it must be a string"),
    ("an empty path", lambda at: (CASES["a point, (1, 1)"][0], ""), ArgumentError, "path is ''"),
    ("no page", lambda at: (CASES["a point, (1, 1)"][0], at / "r.pdf"), ArgumentError, "must end in .html"),
    ("no folder", lambda at: (CASES["a point, (1, 1)"][0], at / "no" / "r.html"), FileNotFoundError, "make it first"),
    ("a folder", lambda at: (CASES["a point, (1, 1)"][0], at / "d.html"), IsADirectoryError, "is a folder"),
    (
        "unwritable",
        lambda at: (CASES["a point, (1, 1)"][0], "/proc/r.html"),
        OSError,
        "nothing can be written into this folder",
    ),
    ("no draws", lambda at: (made({}), at / "r.html"), ArgumentError, "no draws of any site"),
]


@pytest.mark.parametrize("case", WRONG, ids=lambda case: case[0])
def test_wrong_calls_say_what_is_wrong_and_leave_no_file(case: Any, tmp_path: Path) -> None:
    _, arguments, error, message = case
    (tmp_path / "d.html").mkdir()
    with pytest.raises(error) as raised:
        report(*arguments(tmp_path))
    assert message in str(raised.value)
    assert os.listdir(tmp_path) == ["d.html"]


def test_the_path_is_looked_at_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Posterior, "health", property(lambda self: pytest.fail("worked")))
    with pytest.raises(OSError, match="/proc"):
        report(made({"w": normals(4, 50)}), "/proc/report.html")


def test_a_failure_leaves_the_page_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "report.html").write_text("before", encoding="utf-8")

    def fails(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pyro_scale.diagnostics.reporting.made", fails)
    with pytest.raises(KeyboardInterrupt):
        report(made({"w": normals(4, 50)}), tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == "before"
    assert os.listdir(tmp_path) == ["report.html"]


REFERENCES = {
    "another site": ({"v": normals(4, 50)}, "Against the reference: The posteriors have no parameter in common"),
    "another shape": ({"w": normals(4, 50, 3)}, "values, 1 of this posterior and 1 of the reference."),
    "NaN": ({"w": torch.full((4, 50, 2), torch.nan)}, "or are not finite, leave no distance"),
    "constant": ({"w": torch.ones(4, 50, 2)}, "No value varies in the reference"),
    "fewer sites": ({"w": normals(4, 50, 2)}, "values, 1 of this posterior."),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_a_reference_that_does_not_fit_says_so(name: str, tmp_path: Path) -> None:
    draws, message = REFERENCES[name]
    page = written(made({"w": normals(4, 50, 2), "b": normals(4, 50)}), tmp_path, reference=made(draws))
    assert message in page.sections.get("Against the reference", "") + page.sections["Not shown"]
    assert "Error" not in page.sections["Not shown"] and "Error: the point" not in page.source


def test_a_reference_must_be_a_posterior(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="reference is a str; it must be a Posterior"):
        report(made({"w": normals(4, 50)}), tmp_path / "report.html", reference="nuts.nc")  # type: ignore[arg-type]


def test_a_page_is_as_readable_as_other_files(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("", encoding="utf-8")
    report(made({"w": normals(1, 1)}), tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize("from_file", [False, True])
def test_a_fit_has_its_objective_and_no_chains(rows: tuple[Tensor, Tensor], tmp_path: Path, from_file: bool) -> None:
    fit = ps.infer(
        regression, {"x": rows[0], "y": rows[1]}, "vi_diag", num_samples=100, warmup_steps=60, seed=0, progress=False
    )
    given: Any = fit
    if from_file:
        fit.save(tmp_path / "fit.nc")
        given = tmp_path / "fit.nc"
    page = written(given, tmp_path)
    assert {"Summary", "Objective", "Pairs"} <= set(page.sections)
    assert not set(page.sections) & {"Traces", "Ranks", "Autocorrelation", "Effective sample size"}
    assert "the draws are no chains" in page.sections["Not shown"]
    assert page.sections["Not shown"].count("the draws are no chains") == 1  # of many sections, once
    assert "R-hat" not in page.sections[""]  # the verdict
    assert "DiagonalVI: 100 draws of a normal" in page.source and "khat(posterior)" in page.sections[""]
    assert not any(name in page.sections["Summary"] for name in ("ESS", "R-hat", "–"))
    table = summary(given)
    assert table[["ess_bulk", "ess_tail", "r_hat"]].isna().all(axis=None)
    draws = fit.draws["w"][0].numpy()
    np.testing.assert_allclose(table["mcse_mean"], draws.std(0, ddof=1) / 10)
    np.testing.assert_allclose(table["mcse_sd"], draws.std(0) / 200**0.5, rtol=0.3)  # of a normal, by theory


def test_a_point_is_no_distribution(rows: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    """But it predicts one: of 40 rows 90 % intervals hold 0.9, give or take 0.05."""
    point = ps.infer(regression, {"x": rows[0], "y": rows[1]}, "map", seed=0, progress=False)
    page = written(point, tmp_path, reference=exact_posterior(*rows, num_samples=200))
    assert "MAP: a point, 2 values" in page.source
    assert "can be relied on" not in page.sections[""] and "says nothing of how uncertain" in page.sections[""]
    assert "value" in page.sections["Summary"] and "quantiles" not in page.sections["Summary"]
    against = page.sections["Against the reference"]
    assert "all values together" not in against
    assert "Error: the point minus" in against and "sd ratio" not in against
    assert not page.bad  # the mode is the mean
    coverage = re.search(r"coverage 90(0\.\d+)", page.sections["Calibration"])
    assert coverage is not None and abs(float(coverage[1]) - 0.9) < 0.15


def test_an_ensemble_of_classes_is_judged_by_its_probabilities(rows: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    with torch.random.fork_rng():
        module = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3)).double()
    model = ps.bayesian(module, prior=dist.Normal(0.0, 1.0), likelihood=lambda z: dist.Categorical(logits=z))
    labels = (rows[0][:, 0] > 0).long() + (rows[0][:, 1] > 0).long()
    fits = ps.infer(
        model, {"x": rows[0], "y": labels}, "ensemble", num_chains=4, warmup_steps=100, seed=0, progress=False
    )
    page = written(fits, tmp_path)
    assert "Ensemble: 4 points" in page.source
    assert "probability of the likeliest class" in page.source and "place among predictions" not in page.source
    assert "Classes: " in page.sections["Calibration"] and "Numbers: " not in page.sections["Calibration"]
    accuracy = float((fits.predict().mean["obs"].argmax(-1) == labels).double().mean())
    assert f"accuracy{accuracy:.3f}" in page.sections["Calibration"]
    drawn = predicted(gather(fits))["obs"]
    assert drawn.happened is not None and drawn.happened.mean() == pytest.approx(accuracy)
    assert "it takes 10 fits, and there are 4." in page.sections["Not shown"]
    assert not any(name in page.sections["Summary"] for name in ("ESS", "R-hat", "MCSE"))


def test_a_filter_climbs_nothing(rows: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    found = ps.infer(
        regression, {"x": rows[0], "y": rows[1]}, "ekf_dense", batch_size=10, num_samples=50, seed=0, progress=False
    )
    page = written(found, tmp_path)
    assert "before it learnt" in page.sections["Objective"] and "warmup_steps" not in page.sections["Objective"]


def test_a_limit_says_on_which_side_it_is(tmp_path: Path) -> None:
    page = written(made({"good": normals(4, 400), "apart": normals(4, 400) + torch.arange(4.0)[:, None]}), tmp_path)
    assert "≤ 1.010" in page.sections[""] and "≥ 400" in page.sections[""]
    assert "≥ 1.010" not in page.sections[""] and "≤ 400" not in page.sections[""]
