"""The README's table of what a model may contain says what the tests of compilation and of refusals show."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest
from model_cases import CASES
from test_refusals import REFUSALS

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")


class Row(NamedTuple):
    """A row of the table: its first words, and the models that show what it says."""

    starts: str
    minibatch: bool
    cases: tuple[str, ...] = ()
    refusals: tuple[str, ...] = ()


ROWS = [
    Row(
        "global latents of any shape", True,
        ("linear", "supports", "LKJCholesky, multivariate normal", "ImproperUniform", "mixture prior",
         "vector of mixtures, positive mixture",
         "bounded by a latent site", "ordered logistic"),
    ),
    Row(
        "observations of any family", True,
        ("integer labels", "boolean labels", "NumPy data", "Categorical", "Multinomial", "negative binomial",
         "Beta regression", "several observed sites", "multivariate rows", "mixture", "censored",
         "observation that enters once"),
    ),
    Row(
        "missing rows by", True,
        ("mask", "masked distribution", "weights", "weights, subsample argument", "constant scale", "partly observed"),
    ),
    Row(
        "groups: latents", True,
        ("groups", "small integers for groups", "nested plates", "crossed plates", "crossed plates, rows last",
         "ratings"),
    ),
    Row(
        "rows in no plate", True,
        ("no plate", "no plate, scalar parameters", "rows as event axis", "rows and columns as event axes",
         "weighted columns, rows as event axis"),
    ),
    Row(
        "a plate with its own `subsample_size`", True,
        ("subsample argument", "subsample, data in constants", "own subsample", "own subsample, closed over",
         "own subsample, pyro.subsample", "own subsample, groups and weights", "own subsample, crossed with columns",
         "own subsample, latents of rows", "own subsample, mixture", "closed over, by index"),
    ),
    Row("`nn.Module`", True, ("module", "callable object", "PyroModule", "ps.bayesian")),
    Row("`pyro.param`", True, ("params", "pyro.module", "PyroModule with parameters")),
    Row("`pyro.deterministic`", True, ("deterministic sites",)),
    Row("`pyro.factor`", True, ("factors", "only a factor")),
    Row(
        "a latent value for each row, in the plate", True,
        ("eight schools", "true covariate", "shares", "crossed plates, local", "local given discrete"),
    ),
    Row(
        "discrete latents in the plate", True,
        ("discrete", "discrete by column", "discrete behind two observations", "cause and effect", "hidden Markov",
         "one hot"),
    ),
    Row("discrete latents outside it", False, ("discrete outside the plate", "local given discrete outside the plate")),
    Row("a latent value for each row, outside", False, ("local outside the plate",)),
    Row(
        "a joint event over all rows", False,
        ("Gaussian process", "factor over rows", "sequential plate", "prior from data", "standardised inside",
         "random walk", "plate of fixed size", "closed over, whole"),
    ),
    Row(
        "discrete latents whose values", False,
        refusals=("Poisson", "multinomial", "too many combinations", "too many values"),
    ),
]  # fmt: skip


def table() -> list[tuple[str, str, str]]:
    """What, verdict from minibatches, verdict from all rows."""
    text = re.search(r"\| \| from minibatches \|.*?\n\n", README, flags=re.DOTALL)
    assert text is not None
    lines = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.group().strip().splitlines()[2:]]
    return [(what, minibatch, whole) for what, minibatch, whole in lines]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.starts)
def test_a_row_says_what_its_models_show(row: Row) -> None:
    """`test_compile` shows that a case's density is Pyro's, from minibatches where `minibatch` says so."""
    (line,) = [line for line in table() if line[0].startswith(row.starts)]
    cases = [case for case in CASES if case.name in row.cases]
    assert len(cases) == len(row.cases)
    assert {case.minibatch for case in cases} <= {row.minibatch}
    assert line[1].startswith("yes" if row.minibatch else "no")
    assert line[2].startswith("yes" if cases else "no")
    refused = [refusal for refusal in REFUSALS if refusal.name in row.refusals]
    assert len(refused) == len(row.refusals) and all(refusal.full_batch for refusal in refused)


def test_rows_and_cases_are_complete() -> None:
    assert len(table()) == len(ROWS)
    shown = [name for row in ROWS for name in row.cases]
    assert sorted(shown) == sorted(case.name for case in CASES)
