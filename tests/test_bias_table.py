"""The table of biases: two of its runs with few chains, and what it says of runs that were not made."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pyro_scale.kernels import SGLD

FOLDER = Path(__file__).resolve().parent / "benchmarks"
MODULES = ("bias", "bias_table", "results", "measure")


@pytest.fixture
def bias(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The script, as it finds its neighbours when it is run."""
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module("bias")
    for name in MODULES:
        sys.modules.pop(name, None)


def cell(predicted: float, actual: float, error: float = 0.01) -> Any:
    return sys.modules["bias_table"].Cell(predicted, actual, error, 0.02, 0.01, 5)


def test_two_runs(bias: Any) -> None:
    """Errors of the sd of about 30 and 16 per cent, in 100 chains, in standard errors; with its seed it is fixed."""
    problem = bias.regression()
    for batch_size, anchored in ((64, False), (16, True)):
        found = bias.measured(problem, SGLD(step_size=0.15 if anchored else 0.06), batch_size, anchored, 100, 1)
        print(found)
        assert found.told and found.right and not found.diverges
        assert abs(found.actual - found.predicted) < 4 * found.standard_error
        assert abs(found.mean_error) < 4 * found.mean_standard_error


def test_the_noise_of_minibatches_is_that_of_the_rows_gradients(bias: Any) -> None:
    """At positions drawn from the normal: autograd row by row, and their covariance over the rows."""
    problem, number = bias.regression(), 4000
    values, vectors = torch.linalg.eigh(problem.curvature)
    variances = torch.linspace(1.0, 3.0, len(values), dtype=torch.float64) / 50
    normal = torch.randn(number, len(values), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for anchored in (False, True):
        total = torch.zeros(len(values), len(values), dtype=torch.float64)
        for distance in (normal * variances.sqrt()) @ vectors.T:
            errors = problem.y - problem.x @ (problem.mean + distance)
            gradients = problem.x * (errors - anchored * (problem.y - problem.x @ problem.mean))[:, None]
            total += torch.cov(gradients.T) / 10 * (1 - 10 / len(problem.x)) / number
        torch.testing.assert_close(problem.gradient_noise(variances, 10, anchored), total, rtol=0.1, atol=2e-3)


def test_where_noise_feeds_on_itself_there_is_no_law(bias: Any) -> None:
    """One row a minibatch, at a step that all rows together would stand."""
    problem = bias.regression()
    assert bias.predicted(problem, SGLD(step_size=0.6), 1, True).isinf().all()
    assert bias.predicted(problem, SGLD(step_size=0.6), bias.NUM_DATA, False).isfinite().all()
    assert bias.predicted(problem, SGLD(step_size=1.0), bias.NUM_DATA, False).isinf().any()


def test_what_cells_say(bias: Any) -> None:
    assert str(cell(0.011, 0.009, 0.001)) == "1.1 / 0.9 ± 0.1"
    assert str(cell(0.011, 0.2)) == "1.1 / 20 ± 1.0 (wrong)"
    assert str(cell(0.1, 0.01)) == "10 / 1.0 ± 1.0"  # not told from 0
    assert str(cell(math.inf, math.nan, math.nan)) == str(cell(math.inf, 9.0, 2.0)) == "∞ / diverges"
    assert str(cell(1.0, math.nan, math.nan)) == "100 / diverges (wrong)"
    assert str(cell(math.inf, 0.5)) == "∞ / 50 ± 1.0 (wrong)"
    assert str(cell(-0.3, 0.3)) == "-30 / 30 ± 1.0 (wrong)"


def test_what_cells_say_of_means(bias: Any) -> None:
    of = sys.modules["bias_table"].mean_of
    assert of(cell(0.011, 0.009)) == "2.0 ± 1.0"
    assert of(cell(0.011, 0.009)._replace(mean_error=-0.05)) == "-5.0 ± 1.0 (wrong)"
    assert of(cell(math.inf, math.nan, math.nan)) == "diverges"


def test_the_document_counts_what_can_be_judged(bias: Any) -> None:
    cells = [cell(0.3, 0.31), cell(0.3, 0.9), cell(0.01, 0.01), cell(math.inf, math.nan, math.nan)]
    table = {("1", 0.1): cells[0], ("1", 0.2): cells[1], ("all", 0.1): cells[2], ("all", 0.2): cells[3]}
    text = bias.document({"sgld": table}, 2.0, "What it is.")
    said = " ".join(text.split())
    assert "Of 4 runs 1 diverge, and 2 have an sd that is more than 3 standard errors off. For 2 of these 3" in said
    assert "The other 1 runs cannot judge it. Means are predicted to be right: of 15 the farthest is 0.020" in said
    lines = text.splitlines()
    assert "| rows of a minibatch | step size 0.1 | step size 0.2 |" in lines
    assert "| all | 1.0 / 1.0 ± 1.0 | ∞ / diverges |" in lines
    assert "| all | 2.0 ± 1.0 | diverges |" in lines
    assert max(map(len, lines)) <= 120


def test_the_written_table_hides_nothing() -> None:
    """All kernels, batches and step sizes are in it, and it says how many predictions are right."""
    text = (FOLDER / "BIAS.md").read_text(encoding="utf-8")
    cells = [
        part for line in text.splitlines() for part in line.split("|") if " / " in part and "predicted" not in part
    ]
    total, right, judged = 112, sum("(wrong)" not in part for part in cells), " ".join(text.split())
    assert len(cells) == total and f"Of {total} runs" in judged
    assert right == total
    assert text.count(": means") == 4 and len(text.split(" means\n", 1)[1].split(" ± ")) - 1 == total - sum(
        "diverges" in part for part in cells
    )
