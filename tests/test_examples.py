"""What the README and the examples show runs as it stands, on little data, in a process or folder of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import pyro_scale as ps
from pyro_scale.asked import kernel_of

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON_BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example(path: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(path), "--num-samples", "30", "--out", str(tmp_path / "out")]
    command += ["--epochs", "2"] if '"--epochs"' in path.read_text(encoding="utf-8") else []
    # as the tests themselves, of which there is one a core
    environment = {**os.environ, "PYTHONWARNINGS": "", "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    files = sorted((tmp_path / "out").iterdir())
    assert {".nc", ".png"} <= {file.suffix for file in files}
    for file in files:
        assert file.stat().st_size > 5000, file.name
        assert file.name in done.stdout
        if file.suffix == ".nc":
            assert ps.load(file).draws


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < 120


def test_readme_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for code in PYTHON_BLOCKS:
        assert len([line for line in code.splitlines() if line.strip()]) < 40
    few: dict[str, Any] = {"num_samples": 20, "warmup_steps": 100, "num_chains": 4}
    infer, nuts = ps.infer, ps.diagnostics.nuts
    monkeypatch.chdir(tmp_path)

    def short(model: Any, data: Any, method: Any = "sghmc", **options: Any) -> Any:
        thinning = {} if hasattr(kernel_of(method), "fitting") else {"thinning": 1}
        return infer(model, data, method, **{**options, **few, **thinning})

    monkeypatch.setattr(ps, "infer", short)
    monkeypatch.setattr(ps.diagnostics, "nuts", lambda *args, **kw: nuts(*args, **kw, num_samples=20))
    with torch.random.fork_rng():  # networks are made with torch's own random numbers
        exec(compile("\n".join(PYTHON_BLOCKS), "README.md", "exec"), {})  # our own code
    shown = capsys.readouterr().out
    assert "R-hat" in shown and "mean_error" in shown and "tensor([" in shown
    assert (tmp_path / "pima.nc").exists() and (tmp_path / "pima.html").exists()


def test_readme_names_what_exists() -> None:
    for name in re.findall(r"ps\.([a-z_]+(?:\.[A-Za-z_]+)?)", README):
        found = ps
        for part in name.split("."):
            found = getattr(found, part)
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert (ROOT / target).exists(), target
