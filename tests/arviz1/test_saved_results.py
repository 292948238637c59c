"""Saved runs are read, summarised, plotted and reported on under either ArviZ, without torch or Pyro.

`make test` runs this where torch is installed, `make test-arviz1` with ArviZ 1.x in an environment that has no torch
and finds the runs in the folder that SAVED_RUNS names.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import arviz as az
import matplotlib
import numpy as np
import pytest

from pyro_scale import inference_data, storage

matplotlib.use("Agg")
MAJOR = int(importlib.metadata.version("arviz").split(".")[0])
NAMES = ["long", "short", "nuts"]
every_run = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if "SAVED_RUNS" in os.environ:
        return Path(os.environ["SAVED_RUNS"])
    folder = tmp_path_factory.mktemp("saved")
    script = Path(__file__).with_name("saved_runs.py")
    subprocess.run([sys.executable, str(script), str(folder)], check=True, capture_output=True, timeout=300)
    return folder


def command_line(*arguments: str, check: str = "") -> subprocess.CompletedProcess[str]:
    """`python -m pyro_scale` in a process of its own, which then runs `check`."""
    run = "import sys; from pyro_scale.__main__ import main; code = main(sys.argv[1:])"
    code = f"{run}; {check or 'pass'}; sys.exit(code)"
    environment = {
        **os.environ,
        "PYTHONWARNINGS": "error,ignore::FutureWarning",
    }  # ArviZ 0.23, on the first import of a day
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def test_the_environment_is_the_one_that_is_meant() -> None:
    if "SAVED_RUNS" in os.environ:
        assert MAJOR >= 1
        assert importlib.util.find_spec("torch") is None


@every_run
def test_files_of_one_arviz_are_read_and_written_by_the_other(name: str, saved: Path, tmp_path: Path) -> None:
    idata = storage.read(saved / f"{name}.nc")
    assert type(idata).__name__ == ("DataTree" if MAJOR >= 1 else "InferenceData")
    storage.write(idata, tmp_path / "again.nc")
    again = storage.read(tmp_path / "again.nc")
    assert inference_data.group_names(again) == inference_data.group_names(idata)
    for group in inference_data.group_names(idata):
        assert inference_data.dataset(again, group).equals(inference_data.dataset(idata, group))


@every_run
def test_the_summary_has_the_same_columns_and_arviz_numbers(name: str, saved: Path) -> None:
    from pyro_scale.diagnostics import summary

    table = summary(saved / f"{name}.nc")
    assert list(table.columns) == [
        "mean", "sd", "q5", "median", "q95", "mcse_mean", "mcse_sd", "ess_bulk", "ess_tail", "r_hat"
    ]  # fmt: skip
    assert list(table.index) == ["w[0]", "w[1]", "scope/sigma"]
    # in double precision, as ours: R-hat goes by ranks, and the distances from a float32 median have ties
    draws = inference_data.dataset(storage.read(saved / f"{name}.nc"), "posterior").astype(float)
    theirs = az.summary(inference_data.wrap({"posterior": draws}, {}), round_to="none")
    theirs = theirs.loc[["w[0]", "w[1]", "scope:sigma"]]
    for column in ("mean", "sd", "mcse_mean", "mcse_sd", "ess_bulk", "r_hat"):
        np.testing.assert_allclose(table[column].to_numpy(), theirs[column].to_numpy(dtype=float), rtol=1e-6)


@every_run
def test_arviz_plots_run(name: str, saved: Path) -> None:
    idata: Any = storage.read(saved / f"{name}.nc")
    plots = [az.plot_rank, az.plot_forest, az.plot_autocorr, az.plot_trace_dist if MAJOR >= 1 else az.plot_trace]
    import matplotlib.pyplot as plt

    for plot in plots:
        plot(idata, var_names=["w"])
        plt.close("all")


@every_run
def test_the_command_line_reports_without_torch(name: str, saved: Path, tmp_path: Path) -> None:
    """But for nested R-hat, which the long run has, and torch computes where there is one."""
    unused = "" if name == "long" else "assert not {'torch', 'pyro'} & set(sys.modules)"
    page = tmp_path / "page.html"
    done = command_line("report", str(saved / f"{name}.nc"), "-o", str(page), check=unused)
    assert (done.returncode, done.stderr) == (0, "")
    text = page.read_text(encoding="utf-8")
    assert done.stdout.strip() == str(page)
    assert "Traces" in text and "scope/sigma" in text
    assert ("Superchains</h2>" in text) == (name == "long")
    done = command_line("summary", str(saved / f"{name}.nc"), check=unused)
    assert (done.returncode, done.stderr) == (0, "")
    assert "r_hat" in done.stdout and "scope/sigma" in done.stdout and "Health" in done.stdout
