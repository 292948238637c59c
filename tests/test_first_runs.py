"""Large models are checked by parts, and no less."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from small_models import numbers
from torch import Tensor

from pyro_scale.compile import compile_model
from pyro_scale.errors import ModelError
from pyro_scale.first_runs import _halves


def test_halves_are_all_sites_and_alike_in_size(monkeypatch: pytest.MonkeyPatch) -> None:
    position = {name: torch.zeros(size) for name, size in {"b": 1, "w": 50, "v": 40, "c": 11, "none": 0}.items()}
    assert _halves(position) == [position]
    monkeypatch.setattr("pyro_scale.first_runs.LARGE", 101)
    first, second = _halves(position)
    assert {**first, **second}.keys() == position.keys() and not first.keys() & second.keys()
    assert (sum(map(len, first.values())), sum(map(len, second.values()))) == (51, 51)
    assert [list(part) for part in _halves({"w": torch.zeros(200)})] == [["w"]]


class Forward(torch.autograd.Function):
    """An identity that cannot be differentiated."""

    @staticmethod
    def forward(value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Tensor:
        raise RuntimeError("only forward")


@pytest.mark.parametrize("without", ["v", "w"])
def test_a_site_without_a_gradient_is_found_in_either_half(without: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyro_scale.first_runs.LARGE", 0)

    def model(x: Tensor, y: Tensor) -> None:
        weights = {name: pyro.sample(name, dist.Normal(0.0, 1.0).expand([3]).to_event(1)) for name in ("v", "w")}
        held = Forward.apply(weights[without]).sum()  # type: ignore[no-untyped-call]
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(x @ (weights["v"] + weights["w"]) + held, 1.0), obs=y)

    data = {"x": numbers(10, 3, seed=1), "y": numbers(10, seed=2)}
    with pytest.raises(ModelError, match="no gradient: only forward"):
        compile_model(model, data)
