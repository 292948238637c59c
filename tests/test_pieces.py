"""Noise that is drawn ahead piece by piece is what the generator gives at once."""

from __future__ import annotations

import threading
from concurrent.futures import wait

import pytest
import torch
from torch import Tensor

from pyro_scale.pieces import Pieces

SIZES = [32, 16, 48, 21]  # torch makes 16 numbers at a time, and no fewer in a last piece
STEP = sum(SIZES)


def expected(steps: int, dtype: torch.dtype = torch.float64, seed: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.cat([torch.randn(STEP, generator=generator, dtype=dtype) for _ in range(steps)])


def pieces(room: int, dtype: torch.dtype = torch.float64) -> Pieces:
    return Pieces(torch.Generator().manual_seed(3), dtype, SIZES, room)


def taken(source: Pieces, number: int) -> Tensor:
    return torch.cat([source.next().clone() for _ in range(number)])


def alive() -> int:
    return sum(thread.name.startswith("pyro_scale.pieces") for thread in threading.enumerate())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("room", [1, 2, 3, 9])
def test_pieces_are_what_is_drawn_at_once(room: int, dtype: torch.dtype) -> None:
    source = pieces(room, dtype)
    assert torch.equal(taken(source, 3 * len(SIZES)), expected(3, dtype))
    assert alive() == (room > 1)
    source.close()
    assert alive() == 0


@pytest.mark.parametrize("room", [2, 5])
def test_a_piece_stays_as_it_is_until_the_next_is_asked_for(room: int) -> None:
    source = pieces(room)
    for _ in range(6):
        piece = source.next()
        found = piece.clone()
        wait(source.waiting)
        assert torch.equal(piece, found)
    source.close()


@pytest.mark.parametrize("room", [1, 2, 5])
def test_the_state_is_that_after_the_pieces_handed_out(room: int) -> None:
    source = pieces(room)
    whole = expected(4)
    for steps in (1, 2):
        taken(source, len(SIZES))
        generator = torch.Generator()
        generator.set_state(source.state())
        assert torch.equal(torch.randn(STEP, generator=generator, dtype=torch.float64), whole[steps * STEP :][:STEP])
    source.forget()
    assert torch.equal(source.generator.get_state(), source.state())
    assert torch.equal(taken(source, len(SIZES)), whole[2 * STEP : 3 * STEP])
    source.close()
    source.close()
    assert torch.equal(taken(source, len(SIZES)), whole[3 * STEP :])
    source.close()


def test_what_goes_wrong_in_the_thread_is_raised_where_the_piece_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, fails = Pieces._drawn, [6]

    def failing(self: Pieces, number: int) -> Tensor:
        if number in fails:
            raise MemoryError("too much")
        return drawn(self, number)

    monkeypatch.setattr(Pieces, "_drawn", failing)
    source = pieces(3)
    whole = expected(3)
    first = taken(source, 6)
    with pytest.raises(MemoryError, match="too much"):
        source.next()
    fails.clear()
    assert torch.equal(torch.cat([first, taken(source, 6)]), whole)
    source.close()
