"""Functions of every draw: on how many rows the model runs, and for how many draws at a time."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from small_models import X, Y, numbers
from torch import Tensor

from pyro_scale import draws as draws_module
from pyro_scale.compile import CompiledModel, compile_model
from pyro_scale.data import FEW_ROWS
from pyro_scale.draws import constrain
from pyro_scale.types import Position

NUM_ROWS = len(X)
CHAINS, BLOCKS = 2, (4, 1, 2)
DRAWS = sum(BLOCKS)
SEEN: list[int] = []
"""Rows of every run of the model."""


def fitted_values(x: Tensor, y: Tensor) -> None:
    """A deterministic site that follows the rows, and one that does not."""
    SEEN.append(len(x))
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    pyro.deterministic("norm", w.norm())
    pyro.deterministic("mean", x @ w)
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.Normal(x @ w, 1.0), obs=y)


def local_effects(x: Tensor, y: Tensor) -> None:
    """A latent site that follows the rows, so that the model has no value for others."""
    SEEN.append(len(x))
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with pyro.plate("data", len(x)):
        effect = pyro.sample("effect", dist.Normal(0.0, 1.0))
        pyro.sample("obs", dist.Normal(x @ w + effect, 1.0), obs=y)


def positions(compiled: CompiledModel) -> list[Position]:
    """Blocks as a run has them: leaves with an axis of draws and one of chains."""
    return [
        {name: numbers(draws, CHAINS, *shape, seed=draws) for name, shape in compiled.latent.items()}
        for draws in BLOCKS
    ]


ROWS: list[tuple[Callable[..., None], int | None, tuple[str, ...], int]] = [
    (fitted_values, None, ("w", "norm"), FEW_ROWS),
    (fitted_values, None, ("norm", "mean"), NUM_ROWS),
    (fitted_values, 8, ("w", "norm"), FEW_ROWS),
    (local_effects, None, ("w",), FEW_ROWS),
    (local_effects, None, ("w", "effect"), NUM_ROWS),
]


@pytest.mark.parametrize(("model", "batch_size", "keep", "rows"), ROWS)
@pytest.mark.parametrize("at_once", [1, 4, CHAINS * DRAWS])
def test_the_model_runs_on_as_few_rows_and_draws_as_it_must(
    model: Callable[..., None],
    batch_size: int | None,
    keep: tuple[str, ...],
    rows: int,
    at_once: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiled = compile_model(model, {"x": X, "y": Y}, batch_size=batch_size)
    given = positions(compiled)
    monkeypatch.setattr(draws_module, "ROW_NUMBERS", at_once * rows + rows - 1)
    SEEN.clear()
    found = constrain(compiled, given, keep)
    assert set(SEEN) == {rows}
    assert len(SEEN) == -(-CHAINS * DRAWS // at_once)
    w = torch.cat([block["w"] for block in given]).transpose(0, 1)
    expected = {"w": w, "norm": w.norm(dim=-1), "mean": w @ X.T}
    if model is local_effects:
        expected["effect"] = torch.cat([block["effect"] for block in given]).transpose(0, 1)
    assert tuple(found) == keep
    for name in keep:
        assert torch.allclose(found[name], expected[name], rtol=1e-12, atol=1e-12)
