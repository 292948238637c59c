"""Minibatch indices: every row once in every round, in random orders, and the same after a restart."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pyro_scale.batches import SORTED_ROWS, Permutations
from pyro_scale.keyed import NUM_KEYS, permuted

NUM_CHAINS = 3


def permutations(
    num_data: int, batch_size: int, num_chains: int = NUM_CHAINS, seed: int = 0, stored: bool | None = None
) -> Permutations:
    return Permutations(num_data, batch_size, num_chains, torch.Generator().manual_seed(seed), stored=stored)


stored_or_not = pytest.mark.parametrize("stored", [True, False], ids=["stored", "computed"])


def in_rounds(indices: Tensor, num_data: int) -> Tensor:
    """The order in which each chain visits rows, cut into rounds of N: `(num_chains, rounds, N)`."""
    visits = indices.transpose(0, 1).flatten(1)
    rounds = visits.shape[1] // num_data
    return visits[:, : rounds * num_data].unflatten(1, (rounds, num_data))


@stored_or_not
@pytest.mark.parametrize(
    ("num_data", "batch_size"),
    [(10, 1), (10, 3), (10, 5), (10, 7), (10, 10), (1, 1), (257, 100), (1024, 33), (1025, 33), (1300, 1300)],
)
@pytest.mark.parametrize("num_chains", [1, NUM_CHAINS, 200])
def test_every_round_visits_every_row_once(num_data: int, batch_size: int, num_chains: int, stored: bool) -> None:
    """With rows on both sides of the number up to which they are sorted, and of what is made together."""
    num_steps = math.ceil(3 * num_data / batch_size)
    indices = permutations(num_data, batch_size, num_chains, stored=stored).draw(num_steps)
    assert indices.shape == (num_steps, num_chains, batch_size)
    assert indices.dtype == torch.long
    assert indices.is_contiguous()
    rounds = in_rounds(indices, num_data)
    assert rounds.shape[1] >= 3
    assert torch.equal(rounds.sort(-1).values, torch.arange(num_data).expand_as(rounds))


@stored_or_not
@pytest.mark.parametrize("pieces", [(1,) * 12, (5, 7), (2, 9, 1), (11, 0, 1)])
def test_batches_do_not_depend_on_how_many_are_asked_for_at_once(pieces: tuple[int, ...], stored: bool) -> None:
    whole = permutations(10, 3, stored=stored).draw(12)
    source = permutations(10, 3, stored=stored)
    assert torch.equal(torch.cat([source.draw(piece) for piece in pieces]), whole)


@stored_or_not
def test_rounds_and_chains_have_orders_of_their_own(stored: bool) -> None:
    """Two of 12 random orders of 50 rows are the same with probability 66 / 50!."""
    rounds = in_rounds(permutations(50, 10, stored=stored).draw(20), 50).flatten(0, 1)
    assert len(rounds) == 12
    assert len(torch.unique(rounds, dim=0)) == len(rounds)


@pytest.mark.parametrize("stored", [True, False], ids=["stored", "computed"])
def test_every_row_is_as_likely_in_every_place(stored: bool) -> None:
    """And behind every other row. Chi-square over 3000 permutations of 200 rows: beyond 4.5 sd at one seed in 10^5.

    Computed permutations are for millions of rows: those of 20 would be told from random ones.
    """
    rounds = in_rounds(permutations(200, 200, num_chains=1, stored=stored).draw(3000), 200)[0]
    places, steps = chi_square(rounds), chi_square((rounds - rounds.roll(1, 1))[:, 1:] % 200, values=200)
    print(f"chi-square {places:.2f} and {steps:.2f} sd above its mean")
    assert abs(places) < 4.5
    assert abs(steps) < 4.5


@pytest.mark.parametrize("num_data", [10**6, 2**26 + 1, 10**8, 2**40 - 3])
def test_computed_permutations_of_very_many_rows(num_data: int) -> None:
    """Rows in range, all different, as many in one 500th of the range as in another; so are steps from row to row.

    And chains do not agree. Chi-squares of 499 degrees of freedom: beyond 4.5 sd at one seed in 10^5.
    """
    rows = permutations(num_data, 250, num_chains=2, stored=False).draw(400).transpose(0, 1).flatten(1)
    assert int(rows.min()) >= 0 and int(rows.max()) < num_data
    for chain in rows:
        assert len(chain.unique()) == 100_000
    steps = (rows[:, 1:] - rows[:, :-1]) % num_data
    apart = (rows[0] - rows[1]) % num_data
    for numbers in (rows[0], rows[1], steps[0], steps[1], apart):
        counts = (numbers.double() * 500 / num_data).long().bincount(minlength=500).double()
        expected = len(numbers) / 500
        excess = (float(((counts - expected) ** 2 / expected).sum()) - 499) / (2 * 499) ** 0.5
        print(f"chi-square {excess:.2f} sd above its mean")
        assert abs(excess) < 4.5


def test_computed_places_do_not_depend_on_which_are_asked_for() -> None:
    keys = torch.randint(2**31, (3, NUM_KEYS), generator=torch.Generator().manual_seed(0))
    whole = permuted(torch.arange(1000), 1000, keys)
    places = torch.tensor([999, 3, 500])
    assert torch.equal(permuted(places, 1000, keys[1:]), whole[1:, places])


def chi_square(numbers: Tensor, values: int | None = None) -> float:
    """By how many sd the counts of each value in each column differ from equal ones.

    The columns of permutations have all values; differences of neighbours, modulo their number, all but 0.
    """
    size = numbers.shape[1] if values is None else values
    counts = torch.stack([column.bincount(minlength=size) for column in numbers.T]).double()
    if values is None:
        expected, freedom = len(numbers) / size, (size - 1) ** 2
    else:
        counts = counts[:, 1:].sum(0, keepdim=True)  # of one pair each the differences are not independent: all pairs
        expected, freedom = numbers.numel() / (size - 1), size - 2
    return (float(((counts - expected) ** 2 / expected).sum()) - freedom) / (2 * freedom) ** 0.5


def test_every_key_makes_another_permutation() -> None:
    keys = torch.randint(2**31, (1, NUM_KEYS), generator=torch.Generator().manual_seed(0))
    changed = torch.cat([keys, keys ^ torch.eye(NUM_KEYS, dtype=torch.long)])
    assert len(permuted(torch.arange(1000), 1000, changed).unique(dim=0)) == 1 + NUM_KEYS


def test_permutations_are_computed_where_there_are_too_many_to_store() -> None:
    assert permutations(2**22, 1, num_chains=1).stored
    assert not permutations(2**22 + 1, 1, num_chains=1).stored
    assert not permutations(60_000, 1, num_chains=2000).stored


def test_permutations_of_many_rows_are_those_of_torch() -> None:
    """One after another, chain by chain, from the generator."""
    size = SORTED_ROWS + 1
    generator = torch.Generator().manual_seed(0)
    expected = torch.stack([torch.randperm(size, generator=generator) for _ in range(20 * NUM_CHAINS)])
    found = in_rounds(permutations(size, 41).draw(20 * size // 41), size)  # size is 25 * 41
    assert torch.equal(found, expected.unflatten(0, (20, NUM_CHAINS)).transpose(0, 1))


def test_permutations_of_few_rows_are_the_order_of_random_numbers() -> None:
    """One after another, chain by chain, from the generator; what their last four bits are makes no difference."""
    generator = torch.Generator().manual_seed(0)
    numbers = torch.empty(20 * NUM_CHAINS, 10, dtype=torch.long).random_(generator=generator)
    found = in_rounds(permutations(10, 4).draw(50), 10)
    assert torch.equal(found, (numbers // 16).argsort(1).unflatten(0, (20, NUM_CHAINS)).transpose(0, 1))


def test_same_seed_same_rows_other_seed_other_rows() -> None:
    first, again, other = (permutations(10, 3, seed=seed).draw(5) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("batch_size", [1, 3, 10])
@stored_or_not
def test_a_restored_state_gives_the_same_rows(batch_size: int, stored: bool) -> None:
    source = permutations(10, batch_size, stored=stored)
    source.draw(7)
    state = source.state()
    expected = source.draw(9)
    restored = permutations(10, batch_size, seed=99, stored=stored)
    restored.restore(state)
    assert torch.equal(restored.draw(9), expected)
