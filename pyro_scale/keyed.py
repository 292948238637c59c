r"""Permutations that are computed and not stored: each place of one by itself, from a few keys.

A Feistel network (Black & Rogaway (2002), section 5): a number is written as $l 2^b + r$ with $l < a$, and rounds take
$(l, r)$ to $(l + F_k(r) \bmod a, r)$ and to $(l, r \oplus G_k(l))$ in turn. Either can be undone whatever F and G are,
so that the map is a permutation of the numbers below $a 2^b$. Those that land beyond the range are sent through the
network again until they fall within it.
"""

from __future__ import annotations

import torch
from torch import Tensor

NUM_KEYS = 8
"""Rounds of the network."""


def permuted(places: Tensor, size: int, keys: Tensor) -> Tensor:
    """What permutations of 0, ..., size - 1 have at some places.

    Args:
        places: `(n,)`, from 0 to size - 1.
        size: how many numbers are permuted, at most 2**42.
        keys: whole numbers below 2**31, `(num_permutations, NUM_KEYS)`.

    Returns:
        `(num_permutations, n)`.

    Example:
        >>> permuted(torch.arange(5), 5, torch.arange(NUM_KEYS).unsqueeze(0)).sort().values
        tensor([[0, 1, 2, 3, 4]])

    References:
        Black & Rogaway (2002), Ciphers with arbitrary finite domains, CT-RSA.
    """
    keys = keys.to(torch.int32)
    found = _network(places.expand(len(keys), -1), size, keys.T.unsqueeze(-1))
    while bool((beyond := found >= size).any()):
        chains, columns = beyond.nonzero(as_tuple=True)
        found[chains, columns] = _network(found[chains, columns], size, keys[chains].T)
    return found


def _network(numbers: Tensor, size: int, keys: Tensor) -> Tensor:
    """One pass; `keys` are `(NUM_KEYS, ...)`, of each round one for all numbers of a permutation or for each number.

    In 32 bits, whose arithmetic is the quickest: the left part has at most 11 of them, so that its product with 20
    bits of F fits, and F mod a is as good as uniform; the right part has at most 31.
    """
    bits = max(2, (size - 1).bit_length())
    low = bits - min(bits // 2, 11)
    modulus = (size - 1 >> low) + 1  # few numbers below modulus * 2**low lie beyond the range
    left, right = (numbers >> low).to(torch.int32), (numbers & (1 << low) - 1).to(torch.int32)
    mixed, shifted = torch.empty_like(left), torch.empty_like(left)
    for key, other_key in zip(keys[::2], keys[1::2], strict=True):
        _hash(right, key, 20, mixed, shifted)
        left += mixed.mul_(modulus).bitwise_right_shift_(20).sub_(modulus)
        torch.bitwise_right_shift(left, 31, out=shifted)  # all bits are set where it is negative
        left += shifted.bitwise_and_(modulus)
        right ^= _hash(left, other_key, low, mixed, shifted)
    return left.to(torch.long) << low | right


def _hash(value: Tensor, key: Tensor, bits: int, mixed: Tensor, shifted: Tensor) -> Tensor:
    """So many bits that depend on all of value and key, in `mixed`; `shifted` is overwritten as well.

    Products spread bits upwards, where they are taken from; the shift spreads them downwards.
    """
    torch.add(value, key, out=mixed)
    torch.bitwise_right_shift(mixed.mul_(-0x61C88647), 15, out=shifted)
    mixed.bitwise_xor_(shifted).mul_(-0x7A143595)
    return mixed.bitwise_right_shift_(32 - bits).bitwise_and_((1 << bits) - 1)
