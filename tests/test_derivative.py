"""Gradients as `torch.func` has them, with what it does not: recurrent layers stay one operation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_models import numbers
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.utils import _pytree as pytree

from pyro_scale import derivative
from pyro_scale.capture import record
from pyro_scale.derivative import grad_and_value

GROUPS = torch.arange(6) % 3
HELD = nn.Parameter(numbers(3, seed=3))


def grouped(position: Any, y: Tensor) -> Tensor:
    return (position["a"][GROUPS] * y).square().sum() + position["a"].sin().sum() * position["b"]


def holds_parameters(position: Any, y: Tensor) -> Tensor:
    return (position["a"] * HELD).sum().exp() + y.sum() * position["b"]


def without_a_site(position: Any, y: Tensor) -> Tensor:
    return (position["a"] * y[:3]).sum()


def constant(position: Any, y: Tensor) -> Tensor:
    return y.sum()


def position(*chains: int) -> dict[str, Tensor]:
    return {"a": numbers(*chains, 3, seed=1), "b": numbers(*chains, 1, seed=2).squeeze(-1)}


def assert_same(found: Any, expected: Any) -> None:
    for one, other in zip(pytree.tree_leaves(found), pytree.tree_leaves(expected), strict=True):
        torch.testing.assert_close(one.detach(), other.detach(), rtol=1e-14, atol=0)


every_function = pytest.mark.parametrize("function", [grouped, holds_parameters, without_a_site, constant])


@every_function
@pytest.mark.parametrize("enabled", [False, True])
def test_as_torch_has_it(function: Any, enabled: bool) -> None:
    y = numbers(6, seed=4)
    with torch.set_grad_enabled(enabled):
        assert_same(grad_and_value(function)(position(), y), torch.func.grad_and_value(function)(position(), y))
        found = vmap(grad_and_value(function))(position(5), numbers(5, 6, seed=5))
        expected = vmap(torch.func.grad_and_value(function))(position(5), numbers(5, 6, seed=5))
        assert_same(found, expected)
        assert enabled or not any(leaf.requires_grad for leaf in pytree.tree_leaves(found))


@every_function
def test_without_the_private_parts_of_torch(function: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(derivative, "PARTS", ((torch, ("not there",)),))
    y = numbers(6, seed=4)
    assert_same(grad_and_value(function)(position(), y), torch.func.grad_and_value(function)(position(), y))


def test_a_recurrent_layer_stays_one_operation() -> None:
    with torch.random.fork_rng():
        layer = nn.LSTM(4, 5, batch_first=True)
    weights = {name: weight.detach() for name, weight in layer.named_parameters()}
    x = numbers(3, 7, 4, seed=6).float()

    def function(weights: Any, x: Tensor) -> Tensor:
        states, _ = functional_call(layer, weights, (x,))
        return states.square().sum()

    recorded = record(grad_and_value(function), weights, x)
    names = [str(node.target) for node in recorded.graph.graph.nodes]
    assert sum("mkldnn_rnn_layer" in name for name in names) == 2  # of the value and of the gradient
    with torch.no_grad():
        found, value = recorded(weights, x)
    expected, value_expected = torch.func.grad_and_value(function)(weights, x)
    torch.testing.assert_close(value, value_expected)
    for name, leaf in expected.items():
        torch.testing.assert_close(found[name], leaf)


def test_differentiated_it_is_that_of_torch() -> None:
    def slopes(take: Any, b: Tensor) -> Tensor:
        gradient, value = take(grouped)({"a": position()["a"], "b": b}, numbers(6, seed=4))
        return gradient["a"].square().sum() + value

    b = position()["b"]
    found, expected = (
        torch.func.grad(lambda b, take=take: slopes(take, b))(b) for take in (grad_and_value, torch.func.grad_and_value)
    )
    assert expected != 0
    torch.testing.assert_close(found, expected)
