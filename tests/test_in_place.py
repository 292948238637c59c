"""Graphs that write results over what nothing else needs give what functions give, and leave inputs as they were."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from torch.func import vmap

from pyro_scale.capture import record
from pyro_scale.derivative import grad_and_value


def numbers(*shape: int, seed: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.5


def network(w: Tensor, x: Tensor) -> Tensor:
    return ((x @ w).tanh().exp() + (w**2).sum()).log().sum() - 0.5 * ((w - 1) ** 2 / 3 - 0.9).sum()


def twice_used(w: Tensor, x: Tensor) -> Tensor:
    shifted = w + 1
    return shifted * 2 + shifted.exp()


def seen_through_a_view(w: Tensor, x: Tensor) -> Tensor:
    product = w * 2
    return product.exp() + product.T.sum()


def of_another_shape(w: Tensor, x: Tensor) -> Tensor:
    return (w[0] * 2 + x).sum(0) + w.sum()


def of_another_type(w: Tensor, x: Tensor) -> Tensor:
    return (w * 2 > 1.5).to(w.dtype) + (w.float() * 2) * w


def expanded(w: Tensor, x: Tensor) -> Tensor:
    return (w.sum() * 2).expand(4, 3).exp() + (w[:1] * 2).expand(4, 3) * 3


def returned_too(w: Tensor, x: Tensor) -> list[Tensor]:
    product = w * 2
    return [product, product + 1, -(product + 2)]


def on_the_right(w: Tensor, x: Tensor) -> Tensor:
    return w - (w * 2) + w * (w + 1) - (1 / (w * 3))


FUNCTIONS: Sequence[Callable[..., object]] = [
    network, twice_used, seen_through_a_view, of_another_shape, of_another_type, expanded, returned_too, on_the_right,
]  # fmt: skip


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_graph_gives_what_the_function_gives_call_after_call(function: Callable[..., object]) -> None:
    w, x = numbers(4, 3, seed=1), numbers(5, 3, seed=2)
    if function is network:
        x = numbers(5, 4, seed=2)
    recorded = record(function, w, x)
    for seed in (3, 4):
        given = numbers(*w.shape, seed=seed), numbers(*x.shape, seed=seed + 10)
        before = [each.clone() for each in given]
        torch.testing.assert_close(recorded(*given), function(*given), rtol=1e-13, atol=0)
        assert all(map(torch.equal, given, before))


def test_gradients_over_chains_are_those_of_torch() -> None:
    w, x = numbers(2, 4, 3, seed=1), numbers(5, 4, seed=2)
    function = vmap(grad_and_value(network), (0, None))
    recorded = record(function, w, x)
    gradient, value = recorded(w, x)
    expected, expected_value = vmap(torch.func.grad_and_value(network), (0, None))(w, x)
    torch.testing.assert_close((gradient, value), (expected, expected_value), rtol=1e-13, atol=0)


def test_a_chain_of_operations_takes_memory_once() -> None:
    recorded = record(lambda w: -((w * 2).exp() + 1).sqrt(), numbers(4, 3, seed=1))
    names = [str(node.target) for node in recorded._run.graph.nodes if node.op == "call_function"]
    assert names == [
        "aten.mul.Tensor",
        "aten.exp_.default",
        "aten.add_.Tensor",
        "aten.sqrt_.default",
        "aten.neg_.default",
    ]
    untouched = [str(node.target) for node in recorded.graph.graph.nodes if node.op == "call_function"]
    assert not any("_." in name for name in untouched)  # what a compiler is handed


def test_constants_are_not_written_to() -> None:
    held = torch.ones(4, 3, dtype=torch.float64) + torch.arange(3)
    recorded = record(lambda w: (held * 2).exp() + w, numbers(4, 3, seed=1))
    first = recorded(torch.zeros(4, 3, dtype=torch.float64))
    torch.testing.assert_close(recorded(torch.zeros(4, 3, dtype=torch.float64)), first, rtol=0, atol=0)
    torch.testing.assert_close(first, (held * 2).exp(), rtol=1e-13, atol=0)
