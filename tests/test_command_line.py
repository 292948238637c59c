"""`python -m pyro_scale`: a page or a table of a saved posterior, and one line on what is wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from posterior_cases import exact_posterior, generator

from pyro_scale import storage
from pyro_scale.__main__ import main
from pyro_scale.inference_data import build


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    x = torch.randn(20, 2, generator=generator(0), dtype=torch.float64)
    path = tmp_path_factory.mktemp("saved") / "run.nc"
    exact_posterior(x, x.sum(1), num_samples=50).save(path)
    return path


def test_a_process_prints_the_summary_and_the_verdict(saved: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pyro_scale", "summary", str(saved)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == [
        "mean", "sd", "q5", "median", "q95", "mcse_mean", "mcse_sd", "ess_bulk", "ess_tail", "r_hat"
    ]  # fmt: skip
    assert [line.split()[0] for line in lines[1:3]] == ["w[0]", "w[1]"]
    assert "Health: " in done.stdout and "R-hat" in done.stdout


def test_the_page_stands_beside_the_file_or_where_it_is_asked_for(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(saved)]) == 0
    assert capsys.readouterr().out.strip() == str(saved.with_suffix(".html"))
    assert saved.with_suffix(".html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert main(["report", str(saved), "-o", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").exists()


@pytest.mark.parametrize("command", ["report", "summary"])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.nc", "none.nc"),
        ("notes.txt", "wanted .nc (netCDF) or .zarr"),
        ("broken.nc", "that h5netcdf cannot read"),
        ("foreign.nc", "wanted one written by pyro_scale"),
        ("draws.nc", "has no record of a run by pyro_scale"),
        (".", "wanted .nc"),
    ],
)
def test_a_wrong_file_takes_one_line(
    command: str, name: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.nc").write_text("no netCDF", encoding="utf-8")
    idata = build({"posterior": {"w": torch.ones(2, 4).numpy()}})
    storage.write(idata, tmp_path / "draws.nc")
    import xarray as xr

    xr.DataTree.from_dict({"/posterior": xr.Dataset()}).to_netcdf(tmp_path / "foreign.nc", engine="h5netcdf")
    assert main([command, str(tmp_path / name)]) == 1
    said = capsys.readouterr()
    assert said.out == "" and len(said.err.splitlines()) == 1
    assert said.err.startswith("pyro_scale: ") and message in said.err


def test_a_wrong_output_takes_one_line(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for output, message in (("no/page.html", "make it first"), ("page.txt", "must end in .html")):
        assert main(["report", str(saved), "-o", str(tmp_path / output)]) == 1
        assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [[], ["rapport"], ["summary"], ["report", "a.nc", "b.nc"]])
def test_wrong_words_show_the_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    assert raised.value.code == 2
    assert capsys.readouterr().err.startswith("usage: python -m pyro_scale")


def test_help_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["--help"])
    assert raised.value.code == 0
    said = capsys.readouterr().out
    assert "report" in said and "summary" in said and "write an HTML page" in said
