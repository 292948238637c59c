"""Loops whose small intermediate tensors keep their memory give what torch gives, whatever is carried or borrowed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from small_models import numbers
from torch import Tensor

from pyro_scale.native import compile_native, repeated

TURNS = 20
Turn = Callable[[Tensor, Tensor, Tensor], Sequence[Tensor]]


def elementwise(x: Tensor, y: Tensor, weights: Tensor) -> Sequence[Tensor]:
    """What is carried is made in several steps, of which one writes where another stood."""
    centred = x - x.mean(0)
    scale = centred.square().mean(0).sqrt() + 1
    moved = (centred / scale + y.sin()) * weights.diagonal()
    return moved, y + moved.flip(0).cos()


def products(x: Tensor, y: Tensor, weights: Tensor) -> Sequence[Tensor]:
    """Products are computed by calls, to which intermediates are handed as tensors."""
    hidden = (x @ weights / 3).tanh()  # divided, so that rounding does not grow from turn to turn
    return (hidden.T @ weights / 3).sin(), (hidden @ weights / 3 + y / 3).cos()


def swapped(x: Tensor, y: Tensor, weights: Tensor) -> Sequence[Tensor]:
    """Each is read after the other is known."""
    following = (y * 1.1).softmax(-1)
    return following, (x + following.exp() - 1).tanh()


def seen_by_a_view(x: Tensor, y: Tensor, weights: Tensor) -> Sequence[Tensor]:
    """What is carried is a part of an intermediate."""
    joined = torch.cat([x.sin() @ weights / 3, y.cos() @ weights / 3])
    return joined[1 : 1 + len(x)], joined[len(x) :]


def loop(turn: Turn) -> Callable[..., Sequence[Tensor]]:
    def function(*given: Tensor) -> Sequence[Tensor]:
        def within(i: Tensor, *_: Tensor) -> Tensor:
            return i < TURNS

        def body(i: Tensor, x: Tensor, y: Tensor, weights: Tensor, seen: Tensor) -> Sequence[Tensor]:
            after = turn(x, y, weights)
            torch.ops.aten.index_put_(seen, [i], after[0].sum() + after[1].sum())
            return i + 1, *(leaf.clone() for leaf in after)

        x, y, weights, seen = given
        start = torch.zeros((), dtype=torch.long)
        return [*repeated(within, body, [start, x, y], [weights, seen]), seen]

    return function


def arguments(size: int, seed: int) -> list[Tensor]:
    x, y = numbers(size, size, seed=seed), numbers(size, size, seed=seed + 1)
    return [x, y, numbers(size, size, seed=seed + 2) / size**0.5, torch.zeros(TURNS, dtype=torch.float64)]


def expected(turn: Turn, given: Sequence[Tensor]) -> list[Tensor]:
    x, y, weights, seen = (leaf.clone() for leaf in given)
    for i in range(TURNS):
        x, y = (leaf.clone() for leaf in turn(x, y, weights))
        seen[i] = x.sum() + y.sum()
    return [torch.tensor(TURNS), x, y, seen]


def assert_as_torch_has_it(compiled: Any, turn: Turn, given: Sequence[Tensor]) -> None:
    found = compiled([leaf.clone() for leaf in given])
    for one, other in zip(found, expected(turn, given), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


# the memory of the larger is taken in every turn
@pytest.mark.parametrize("size", [5, 80])
@pytest.mark.parametrize("turn", [elementwise, products, swapped, seen_by_a_view])
def test_loops_give_what_torch_gives(turn: Turn, size: int) -> None:
    compiled = compile_native(loop(turn), arguments(size, 0))
    for seed in (10, 20):
        assert_as_torch_has_it(compiled, turn, arguments(size, seed))


def test_threads_do_not_share_intermediates() -> None:
    compiled = compile_native(loop(products), arguments(24, 0))
    with ThreadPoolExecutor(max_workers=4) as threads:
        many = [threads.submit(assert_as_torch_has_it, compiled, products, arguments(24, seed)) for seed in range(200)]
        for each in many:
            each.result()


def test_small_intermediates_keep_their_memory_and_what_is_carried_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    from pyro_scale import inductor

    kept: dict[str, bool] = {}
    decide = inductor.Wrapper._keeps_memory

    def noted(wrapper: Any, buffer: Any) -> bool:
        kept[buffer.get_name()] = decide(wrapper, buffer)
        return kept[buffer.get_name()]

    monkeypatch.setattr(inductor.Wrapper, "_keeps_memory", noted)
    monkeypatch.setattr("pyro_scale.native._of_earlier", lambda note: None)
    compile_native(loop(elementwise), arguments(6, 0))
    assert True in kept.values()
    assert False in kept.values()
