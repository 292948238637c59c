"""What is kept of positions as they come, against the same from all of them at once."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from small_models import numbers
from torch import Tensor

from pyro_scale import seen as seen_module
from pyro_scale import tree
from pyro_scale.mode import Mode
from pyro_scale.seen import Seen
from pyro_scale.types import Position
from pyro_scale.whitening import Whitened

NUMBER, CHAINS, NUM_DATA = 20, 5, 50
CURVATURE = torch.tensor([4.0, 100.0, 0.25, 1.0, 9.0]).double()
MODE = Mode({"a": torch.tensor(2.0).double(), "w": numbers(2, 2, seed=1)}, 0.0, True, 0, CURVATURE)
WHITENED = Whitened(cast(Any, None), MODE, NUM_DATA)
POSITIONS = {"a": numbers(NUMBER, CHAINS, seed=2), "w": 3 * numbers(NUMBER, CHAINS, 2, 2, seed=3)}


def vectors() -> Tensor:
    """The whitened coordinates, by hand."""
    flat = torch.cat([POSITIONS["a"].unsqueeze(-1), POSITIONS["w"].flatten(2)], -1)
    return (flat - tree.ravel(MODE.position)) * (CURVATURE / NUM_DATA).sqrt()


def told(centers: Tensor, sizes: list[int], seed: int = 0) -> tuple[Seen, Tensor]:
    """Of blocks of such lengths, and the traces."""
    seen = Seen(WHITENED, centers, NUMBER, torch.Generator().manual_seed(seed))
    traces, first = [], 0
    for size in sizes:
        block: Position = tree.map(lambda leaf, first=first, size=size: leaf[first : first + size], POSITIONS)
        traces.append(seen(block)[""])
        first += size
    return seen, torch.cat(traces)


@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize("sizes", [[20], [1] * 20, [7, 1, 12]], ids=str)
def test_moments_are_those_of_all_chains_beyond_the_first_third(groups: int, sizes: list[int]) -> None:
    seen, _ = told(5 * numbers(groups, 5, seed=4), sizes)
    later = vectors()[NUMBER // 3 :]
    group = torch.arange(CHAINS) % groups
    expected = torch.stack([later[:, group == each].mean((0, 1)) for each in range(groups)])
    means, variances = seen.moments()
    assert torch.allclose(means, expected, rtol=1e-10)
    assert torch.allclose(variances, (later - expected[group]).square().mean((0, 1)), rtol=1e-10)


def test_traces_are_of_a_few_coordinates_in_the_order_of_the_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seen_module, "TRACED", 3)
    seen, traces = told(torch.zeros(1, 5).double(), [7, 13])
    assert traces.shape == (NUMBER, CHAINS, 3)
    assert len(set(seen.traced.tolist())) == 3
    assert torch.allclose(traces, vectors()[..., seen.traced], rtol=1e-12)
    others = {tuple(told(torch.zeros(1, 5).double(), [20], seed)[0].traced.tolist()) for seed in range(5)}
    assert len(others) > 1


@pytest.mark.parametrize(("numbers_kept", "places"), [(2**24, range(6, 20)), (33, [7, 10, 13, 16, 19])])
def test_some_positions_are_kept_and_always_the_last(
    numbers_kept: int, places: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 100 numbers a chain 33 make every third."""
    monkeypatch.setattr(seen_module, "SNAPSHOT_NUMBERS", numbers_kept)
    seen, _ = told(torch.zeros(1, 5).double(), [7, 13])
    assert torch.allclose(torch.stack(seen.snapshots), vectors()[list(places)], rtol=1e-12)


def test_far_from_their_center_variances_are_not_negative() -> None:
    seen, _ = told(torch.full((1, 5), 1e9).double(), [20])
    assert float(seen.moments()[1].min()) >= 0
