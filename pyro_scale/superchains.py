"""Superchains: groups of chains that start at the same place, whose means tell what chains remember of their starts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pyro_scale.checks import check_count
from pyro_scale.errors import ArgumentError


def check_superchains(number: int | None, num_chains: int) -> int | None:
    """The number of superchains; raises `ArgumentError` unless it divides the chains into groups of two or more."""
    if number is None:
        return None
    if num_chains < 4:
        raise ArgumentError(
            f"num_superchains is {number!r}, and there are {num_chains} chains; two superchains of two take 4."
        )
    number = check_count("num_superchains", number, 2, num_chains // 2, f", half of the {num_chains} chains")
    if num_chains % number:
        raise ArgumentError(f"num_superchains is {number}; it must divide the number of chains, {num_chains}.")
    return number


def together(leaves: Any, num_superchains: int) -> Any:
    """Leaves with a leading chain axis, of which all chains of a superchain have what its first one has."""

    def of_first(leaf: Tensor) -> Tensor:
        size = len(leaf) // num_superchains
        return leaf[torch.arange(len(leaf), device=leaf.device) // size * size]

    return pytree.tree_map(of_first, leaves)
